"""`mvlm export` and `mvlm run`, as typed."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.bundle import files as bundles
from export.bundle import make
from export.runtime import MvlmError, Runtime
from tests.support.bundles import Made, bundle_for, pool_bundle, query_bundle, write_router
from tests.support.tiny import QUESTIONS

ROOT = Path(__file__).parents[2]


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
    assert "decode float32): 1 of 1 answers the same, 0.0 points lost [0.0, 0.0]" in answered.output
    assert Runtime.load(made.bundle).verified(9) == "not verified"
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


def test_a_verification_that_fails_leaves_what_it_refused_and_no_bundle(made, tmp_path, mvlm, monkeypatch):
    write = make.write_bundle

    def write_then_change_a_weight(source, plan, folder, progress, *numbers):
        write(source, plan, folder, progress, *numbers)
        source.model.language_model.model.norm.weight.data[3] += 0.1

    monkeypatch.setattr(make, "write_bundle", write_then_change_a_weight)
    failed = mvlm(*arguments(made, tmp_path / "bundle", "--scales", "9"))
    assert failed.exit_code == 1
    assert "error: the exported files do not compute what the model computes: scale 9, prefill" in failed.output
    assert list(tmp_path.iterdir()) == [tmp_path / "bundle.refused"]
    assert " passes" not in failed.output  # behind float32 nothing else is tried


def test_overwrite_keeps_the_old_bundle_until_the_new_one_is_verified(made, tmp_path, mvlm, monkeypatch):
    old = shutil.copytree(made.bundle, tmp_path / "bundle")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "write_bundle", stop)
    assert mvlm(*arguments(made, old, "--overwrite")).exit_code == 130
    assert Runtime.load(old).manifest.scales == made.source.scales
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--scales", "nine"], "is not a list of scales"),
        (["--scales", "9,576"], "was fitted for 1, 4, 9, 36, 144"),
        (["--scales", "9,25"], "cannot show a picture in 25 tokens"),
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


def test_two_graphs_say_what_they_cost(made, tmp_path, mvlm):
    out = tmp_path / "bundle"
    done = mvlm(
        *arguments(made, out, "--scales", "4", "--precision", "prefill=int8,decode=int4", "--max-length", "200"),
        "--max-loss", "9",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    verified = json.loads((out / "verify.json").read_text())
    assert verified["calibration"]["rows"] == 3  # all that are not of the test split
    assert set(verified["calibration"]["foretold_nats"]) == {"prefill", "decode"}
    assert "KL" in done.output
    assert "(allowed 9)" in done.output
    assert "prefill has a graph of its own" in done.output
    assert "points lost" in done.output
    manifest = json.loads((out / "bundle.json").read_text())
    assert manifest["precision"] == {
        "tower": "float32", "connector": "float32", "prefill": "int8", "decode": "int4",
    }  # fmt: skip
    assert manifest["max_length"] == 200
    assert Runtime.load(out).ask(made.picture(0), QUESTIONS[0], 4, max_new_tokens=3).num_visual_tokens == 4

    refused = mvlm("verify", str(out), "--run", str(query_bundle().run), "--rows", str(made.rows))
    assert refused.exit_code == 2
    assert "was made from another run" in refused.output
    again = mvlm("verify", str(out), "--verify-rows", "2")  # it knows what it was made of
    assert again.exit_code == 0, again.output
    assert "    4 tokens: " in again.output
    anew = json.loads((out / "verify.json").read_text())
    assert len(anew["rows"]) == 2
    assert (anew["max_loss"], anew["calibration"]) == (9, verified["calibration"])
    known = {"run": str(made.run), "rows": str(made.rows), "metrics_said": []}
    assert anew["made_from"] == verified["made_from"] == known
    Runtime.load(out)  # sealed again


def test_a_precision_that_loses_too_much_names_layers_and_the_next_that_passes(made, tmp_path, mvlm):
    asked = arguments(made, tmp_path / "bundle", "--no-router", "--scales", "4")
    failed = mvlm(*asked, "--precision", "int4-fast", "--max-loss", "0.0001", "--calibration-rows", "2")
    assert failed.exit_code == 1
    assert "the chances of the next token moved by" in failed.output
    assert re.search(r"the layers that cost most: layers\.\d\.\S+ \(4b128zh, \w+: \S+\), ", failed.output)
    assert "--precision float32 passes" in failed.output
    assert list(tmp_path.iterdir()) == [tmp_path / "bundle.refused"]


def test_auto_takes_the_first_that_passes(made, tmp_path, mvlm):
    out = tmp_path / "bundle"
    done = mvlm(*arguments(made, out, "--no-router", "--scales", "4", "--precision", "auto", "--max-loss", "1e-4"))
    assert done.exit_code == 0, done.output
    assert json.loads((out / "bundle.json").read_text())["precision"]["decode"] == "float32"
    assert done.output.count("refused: ") == 4
    assert "refused: prefill=int8,decode=int4-fast: the exported files do not compute" in done.output


def test_without_calibration_and_without_rows_for_it(made, tmp_path, mvlm):
    out, rows = tmp_path / "bundle", tmp_path / "rows"
    shutil.copytree(made.rows, rows)
    (rows / "rows.jsonl").write_text((rows / "rows.jsonl").read_text().replace('"val"', '"test"'))
    asked = ["--no-router", "--scales", "4", "--precision", "int4", "--max-loss", "9", "--rows", str(rows)]
    failed = mvlm(*arguments(made, out), *asked)
    assert failed.exit_code == 2
    assert "no row is left to calibrate with" in failed.output
    done = mvlm(*arguments(made, out), *asked, "--calibration-rows", "0")
    assert done.exit_code == 0, done.output
    assert json.loads((out / "bundle.json").read_text())["calibrated"] == {}


def test_what_verify_refuses_is_kept_under_a_name_that_says_so(made, tmp_path, mvlm, monkeypatch):
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")
    weights = (bundle / "weights.bin").read_bytes()
    (bundle / "weights.bin").write_bytes(bytes(len(weights) // 2) + weights[len(weights) // 2 :])
    bundles.reseal(bundle)
    failed = mvlm("verify", str(bundle), "--run", str(made.run), "--rows", str(made.rows), "--verify-rows", "1")
    assert failed.exit_code == 1
    assert "do not compute what the model computes" in failed.output
    kept = tmp_path / "bundle.refused"
    assert f"it stands in {kept}" in failed.output
    assert list(tmp_path.iterdir()) == [kept]
    said = json.loads((kept / "verify.json").read_text())
    assert said["refused"].startswith("the exported files do not compute what the model computes")
    assert said["scales"]
    with pytest.raises(MvlmError, match="was refused when it was verified") as refused:
        Runtime.load(kept)
    assert refused.value.code == "refused-bundle"


def test_a_refused_bundle_can_be_allowed(made, tmp_path, mvlm):
    """What is refused for its loss alone stands beside, and opens once more is allowed."""
    failed = mvlm(*arguments(made, tmp_path / "bundle", "--scales", "9", "--precision", "float32", "--max-loss", "0"))
    assert failed.exit_code == 1
    kept = tmp_path / "bundle.refused"
    assert f"it stands in {kept}" in failed.output
    assert list(tmp_path.iterdir()) == [kept]
    done = mvlm("verify", str(kept), "--verify-rows", "1", "--max-loss", "100")
    assert done.exit_code == 0, done.output
    assert Runtime.load(kept, threads=1).ask(made.picture(0), "what?", 9, max_new_tokens=1).num_visual_tokens == 9


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--target", "tpu"], "no target 'tpu'"),
        (["--target", "jetpack-6.2", "--precision", "int4"], "opset 21"),
        (["--precision", "tower=int2"], "tower=int2 (it takes float32, int8)"),
        (["--max-length", "9999"], "made for 512 positions"),
        (["--scales", "25"], "cannot show a picture in 25 tokens"),
        (["--scales", "4-"], "not a list of scales"),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_is_written(made, tmp_path, mvlm, options, says):
    refused = mvlm(*arguments(made, tmp_path / "bundle", "--no-router", "--scales", "4", *options))
    assert refused.exit_code == 2
    assert says in refused.output
    assert list(tmp_path.iterdir()) == []


def test_prompts_alone_in_8_bits_pass_their_own_verification(made, tmp_path, mvlm):
    """Decoding reads the cache that 8 bits wrote, and is held to what those allow."""
    done = mvlm(*arguments(made, tmp_path / "bundle", "--scales", "9", "--precision", "prefill=int8"))
    assert done.exit_code == 0, done.output


def test_rows_that_are_too_long_are_named_before_a_graph_is_written(made, tmp_path, mvlm, monkeypatch):
    monkeypatch.setattr(make, "write_bundle", None)
    done = mvlm(*arguments(made, tmp_path / "bundle", "--scales", "36", "--max-length", "40"))
    assert done.exit_code == 2
    assert "1 of 1 rows to verify with do not fit into 40 positions at scale 36" in done.output
    assert "\n  id " in done.output
    assert not (tmp_path / "bundle").exists()


def test_too_little_disk_is_seen_before(made, tmp_path, mvlm, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(bundles.shutil, "disk_usage", lambda place: usage)
    refused = mvlm(*arguments(made, tmp_path / "new" / "bundle", "--scales", "4"))
    assert refused.exit_code == 2
    assert "has 0 MiB free: make room" in refused.output
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_for_another_device_is_refused(made):
    other = bundle_for(query_bundle(), "rtx", None)
    with pytest.raises(MvlmError, match=r"was made for rtx \(provider tensorrt-rtx\), not for cpu"):
        Runtime.load(other.bundle)


def test_a_range_of_scales(tmp_path, mvlm):
    made = query_bundle()
    done = mvlm(*arguments(made, tmp_path / "bundle", "--no-router", "--scales", "1-20,70", "--verify-rows", "1"))
    assert done.exit_code == 0, done.output
    files = [file.name for file in (tmp_path / "bundle").glob("connector_*.onnx")]
    assert len(files) == 21
    whole = (made.bundle / "weights.bin").stat().st_size
    assert (tmp_path / "bundle" / "weights.bin").stat().st_size <= whole  # each scale's constant is the first of one


def test_an_export_that_is_told_to_end_leaves_nothing(made, tmp_path):
    """SIGTERM in the middle of writing: the folder beside, which is hidden, goes too."""
    code = (
        "import os, signal, sys, time\nimport export.bundle.files as b\nfrom mvlm_core.cli import main\n"
        "write = b.write_bundle\n"
        "def stop(*args):\n    write(*args)\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(20)\n"
        "b.write_bundle = stop\nmain(sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments(made, tmp_path / "bundle", "--scales", "9")], cwd=ROOT, timeout=200
    )
    assert ended.returncode == 143
    assert list(tmp_path.iterdir()) == []
