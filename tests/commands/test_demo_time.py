"""What `make demo` says of how long it takes."""

import re

import pytest
from click.testing import CliRunner

from mvlm_core.commands.demo import Demo
from mvlm_core.commands.demo_size import LONG, SHEETS, SHORT
from mvlm_core.commands.demo_time import DRAWN_S, LONG_FIT_S, MEASURED, Clock, expected, slowness, spoken

WHOLE = sum(MEASURED.values())


def test_the_first_guess_is_the_measured_time_on_this_machine():
    assert Clock(1.0).left() == pytest.approx(WHOLE)
    assert Clock(3.0).left() == pytest.approx(3 * WHOLE)


def test_what_its_verbs_took_sets_it_right():
    """Guessed at the measured pace, and twice as slow in truth: the rest is guessed longer with every verb."""
    taken: dict[str, float] = {}
    clock, verbs = Clock(1.0, taken=taken), list(MEASURED)
    of_truth = []
    for verb in verbs[:-1]:
        taken[verb] = 2 * MEASURED[verb]
        of_truth.append(clock.left() / (2 * sum(MEASURED[v] for v in verbs if v not in taken)))
    assert of_truth == sorted(of_truth)
    assert 0.5 < of_truth[0] < of_truth[-1] < 1
    taken[verbs[-1]] = 1.0
    assert clock.left() == 0


def test_more_pictures_and_steps_take_longer():
    assert expected(SHORT) == MEASURED
    more = {verb: seconds / MEASURED[verb] for verb, seconds in expected(LONG).items()}
    assert more == pytest.approx({
        "data": 21100 / 16200, "train": 1700 / 1500, "label": 5100 / 1800, "export": 1, "report": 1, "run": 1,
        "fit-router": LONG_FIT_S / MEASURED["fit-router"],
    })  # fmt: skip


def test_a_machine_that_draws_slower_is_slower(monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr("mvlm_core.commands.demo_time.time.perf_counter", lambda: next(ticks) * 0.01)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    two_cores = slowness()
    assert two_cores == pytest.approx(0.01 / DRAWN_S)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert slowness() == pytest.approx(2 * two_cores)


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "less than a minute"), (70, "about a minute"), (458, "about 8 minutes")]
)
def test_as_a_person_says_it(seconds, words):
    assert spoken(seconds) == words


def told_by(demo: Demo, monkeypatch) -> tuple[str, list[list[str]]]:
    """What a demo says whose verbs do nothing, and the verbs."""
    import click

    asked: list[list[str]] = []
    monkeypatch.setattr("mvlm_core.cli.main.run", asked.append)
    monkeypatch.setattr(Demo, "_example", lambda self, rows: ("picture.png", "what is it?", "red"))
    monkeypatch.setattr(Demo, "_say_where_everything_lies", lambda self: None)
    monkeypatch.setattr("mvlm_core.commands.demo.slowness", lambda: 1.0)
    demo.out.mkdir()
    said = CliRunner().invoke(click.command()(lambda: demo.run(overwrite=False)), [], catch_exceptions=False)
    return said.output, asked


def test_it_is_said_at_the_start_and_at_each_stage(tmp_path, monkeypatch):
    told, asked = told_by(Demo(tmp_path / "demo", "pool", 0), monkeypatch)
    assert told.startswith(f"This takes {spoken(WHOLE)} on this machine.\n")
    stages = re.findall(r"^stage (\d) of (\d), (?:about|less than) .* left\n\$ mvlm ([a-z-]+)", told, re.MULTILINE)
    assert stages == [(str(n), str(len(MEASURED)), verb) for n, verb in enumerate(MEASURED, 1)]
    assert asked[0][asked[0].index("--val") + 1] == str(SHORT.pictures.val)


def test_a_long_demo_says_so_and_draws_and_learns_more(tmp_path, monkeypatch):
    told, asked = told_by(Demo(tmp_path / "demo", "pool", 0, LONG), monkeypatch)
    assert told.startswith(f"This takes {spoken(sum(expected(LONG).values()))} on this machine.\n")
    assert asked[0][asked[0].index("--val") + 1] == str(LONG.pictures.val)
    assert f"stages.1.steps={LONG.steps[1]}" in asked[1]


def test_a_demo_is_long_or_rehearsed(tmp_path, mvlm):
    refused = mvlm("demo", "--rehearse", "--long", "--out", tmp_path / "demo")
    assert refused.exit_code == 2
    assert "--rehearse and --long exclude each other" in refused.output
    refused = mvlm("demo", "--size", "large", "--long", "--out", tmp_path / "demo")
    assert refused.exit_code == 2
    assert "--size large and --long exclude each other" in refused.output


def test_a_demo_of_sheets_goes_all_the_way(tmp_path, monkeypatch):
    _, asked = told_by(Demo(tmp_path / "demo", "pool", 0, SHEETS, large=True), monkeypatch)
    assert [words[0] for words in asked] == ["data", "train", "label", "fit-router", "export", "report", "run"]
    assert asked[0][asked[0].index("--size") + 1] == "large"


def test_a_demo_of_the_varied_world_draws_it(tmp_path, monkeypatch, mvlm):
    _, asked = told_by(Demo(tmp_path / "demo", "pool", 0, world="varied"), monkeypatch)
    assert asked[0][asked[0].index("--world") + 1] == "varied"
    made: list[Demo] = []
    monkeypatch.setattr(Demo, "run", lambda demo, overwrite: made.append(demo))
    assert mvlm("demo", "--world", "varied", "--out", tmp_path / "y").exit_code == 0
    assert [demo.world for demo in made] == ["varied"]  # the verb passes on what it was told
    refused = mvlm("demo", "--world", "varied", "--size", "large", "--out", tmp_path / "x")
    assert refused.exit_code == 2
    assert "--world varied is of pictures of one view" in refused.output
