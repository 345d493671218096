"""`mvlm export` and `mvlm run`, as typed."""

from __future__ import annotations

import json
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from bundles import Made, pool_bundle, write_router
from tiny import QUESTIONS

from export import bundle as bundles
from export.runtime import MvlmError, Runtime

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made() -> Made:
    return pool_bundle()


def arguments(made: Made, out: Path, *more: str) -> list[str]:
    places = ["--rows", made.rows, "--router", made.router, "--out", out, "--verify-rows", 1]
    return ["export", *map(str, (made.run, *places)), *more]


def test_export_then_the_command_that_it_names(made, tmp_path, mvlm):
    out = tmp_path / "bundle"
    done = mvlm(*arguments(made, out, "--scales", "9,1"))
    assert done.exit_code == 0, done.output
    assert sorted(json.loads((out / "verify.json").read_text())["scales"]) == ["1", "9"]
    assert "verify.json" in json.loads((out / "bundle.json").read_text())["files"]
    following = shlex.split(done.output.splitlines()[-1].removeprefix("next: mvlm "))
    answered = mvlm(*following)
    assert answered.exit_code == 0, answered.output
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    again = mvlm(*arguments(made, out, "--scales", "9"))
    assert again.exit_code == 2
    assert "is not empty" in again.output

    (out / "verify.json").write_text("{}")
    with pytest.raises(MvlmError, match=r"verify\.json was changed"):
        Runtime.load(out)


def test_without_a_router_a_scale_is_named(made, tmp_path, mvlm):
    out = tmp_path / "bundle"
    done = mvlm(*arguments(made, out, "--no-router", "--scales", "4"))
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].endswith("--scale 4")
    asked = ["run", str(made.picture(0)), QUESTIONS[0], "--bundle", str(out)]
    assert mvlm(*asked, "--scale", "4").exit_code == 0
    refused = mvlm(*asked)
    assert refused.exit_code == 2
    assert "this bundle holds no router: name a scale, one of 4" in refused.output


def test_a_verification_that_fails_leaves_nothing(made, tmp_path, mvlm, monkeypatch):
    write = bundles.write_bundle

    def write_then_change_a_weight(source, folder, progress):
        write(source, folder, progress)
        source.model.language_model.model.norm.weight.data[3] += 0.1

    monkeypatch.setattr(bundles, "write_bundle", write_then_change_a_weight)
    failed = mvlm(*arguments(made, tmp_path / "bundle", "--scales", "9"))
    assert failed.exit_code == 1
    assert "error: the exported files do not compute what the model computes: scale 9, prefill" in failed.output
    assert list(tmp_path.iterdir()) == []


def test_overwrite_keeps_the_old_bundle_until_the_new_one_is_verified(made, tmp_path, mvlm, monkeypatch):
    old = shutil.copytree(made.bundle, tmp_path / "bundle")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundles, "write_bundle", stop)
    assert mvlm(*arguments(made, old, "--overwrite")).exit_code == 130
    assert Runtime.load(old).manifest.scales == made.source.scales
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--scales", "nine"], "is not a list of scales"),
        (["--scales", "9,25"], "was fitted for 1, 4, 9, 36, 144"),
        (["--no-router"], "name them with --scales"),
        (["--no-router", "--scales", "25"], "cannot show a picture in 25 tokens"),
        (["--router", "absent"], "there is no router absent"),
        (["--rows", "absent"], "there are no rows at absent"),
    ],
)
def test_what_cannot_be_exported(made, tmp_path, mvlm, more, says):
    refused = mvlm(*arguments(made, tmp_path / "bundle", *more))
    assert refused.exit_code == 2
    assert says in refused.output
    assert refused.output.startswith("error: ")
    assert len(refused.output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_router_for_other_scales_names_both(made, tmp_path, mvlm):
    write_router(tmp_path / "router", made.run, (1, 4))
    refused = mvlm(*arguments(made, tmp_path / "bundle", "--router", str(tmp_path / "router"), "--scales", "4,9"))
    assert refused.exit_code == 2
    assert "scales 4, 9" in refused.output
    assert "fitted for 1, 4" in refused.output


def test_the_example_answers(made, capsys, monkeypatch):
    questions = QUESTIONS[:2]
    main = runpy.run_path(str(ROOT / "examples" / "embed_in_app.py"))["main"]
    main(str(made.bundle), str(made.picture(0)), *questions)
    lines = capsys.readouterr().out.split("\n")[:-1]
    runtime = Runtime.load(made.bundle)
    for question, said, why in zip(questions, lines[::2], lines[1::2], strict=True):
        answer = runtime.ask(made.picture(0), question)
        assert said == f"{question} {answer.text}"
        assert answer.reason in why
