"""`mvlm chat`: a conversation in the terminal."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from mvlm_core.cli import main
from tests.support.bundles import Made, pool_bundle
from tests.support.tiny import QUESTIONS


@pytest.fixture(scope="module")
def made() -> Made:
    return pool_bundle()


def talked(made, *lines: str, options: tuple[str, ...] = ()):
    typed = "".join(f"{line}\n" for line in lines)
    arguments = ["chat", "--bundle", str(made.bundle), "--threads", "1", "--max-new-tokens", "6", *options]
    return CliRunner().invoke(main, arguments, input=typed)


def test_a_conversation(made, runtime):
    talk = talked(made, f"/image {made.picture(0)}", QUESTIONS[0], QUESTIONS[1], "/quit", options=("--scale", "9"))
    first = [{"role": "user", "content": [{"type": "image", "image": made.picture(0)},
                                          {"type": "text", "text": QUESTIONS[0]}]}]  # fmt: skip
    one = runtime.chat(first, 9, max_new_tokens=6).text
    said = [*first, {"role": "assistant", "content": one}, {"role": "user", "content": QUESTIONS[1]}]
    assert talk.exit_code == 0
    assert talk.stdout == f"{one}\n{runtime.chat(said, 9, max_new_tokens=6).text}\n"
    assert talk.stderr.count("tokens read") == 2


def test_a_system_text_and_a_new_beginning(made, runtime):
    talk = talked(made, "hi", "/new", "hi", options=("--system", "Be brief."))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert talk.stdout == 2 * f"{runtime.chat(messages, max_new_tokens=6).text}\n"


def test_the_bundle_may_be_named_without_a_flag_and_several_pictures_say_their_scales(made, runtime):
    lines = (f"/image {made.picture(0)}", f"/image {made.picture(1)}", "which?", "/quit")
    typed, options = "".join(f"{line}\n" for line in lines), ["--threads", "1", "--max-new-tokens", "6"]
    talk = CliRunner().invoke(main, ["chat", str(made.bundle), *options], input=typed)
    content = [*({"type": "image", "image": made.picture(number)} for number in (0, 1)),
               {"type": "text", "text": "which?"}]  # fmt: skip
    answer = runtime.chat([{"role": "user", "content": content}], max_new_tokens=6)
    assert talk.stdout == f"{answer.text}\n"
    assert f"pictures in {answer.scales[0]}, {answer.scales[1]} tokens" in talk.stderr
    twice = CliRunner().invoke(main, ["chat", "a", "--bundle", "b"])
    assert (twice.exit_code, "two bundles are named, a and b: name one" in twice.output) == (2, True)


def test_a_slip_does_not_end_it(made):
    talk = talked(made, "/image nowhere.png", "/jump", "", "hi")
    assert talk.exit_code == 0
    assert "there is no picture nowhere.png" in talk.stderr
    assert "there is no /jump" in talk.stderr
    assert talk.stdout.count("\n") == 1


def test_a_scale_that_is_none(made):
    assert talked(made, options=("--scale", "many")).exit_code == 2
