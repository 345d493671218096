"""The whole way at toy size, through the real verbs; and the README and the examples that show it."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from mvlm_core.cli import VERBS, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("rehearsal") / "demo"
    return out, CliRunner().invoke(main, ["demo", "--rehearse", "--out", str(out)])


def verbs(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^(mvlm .+)$", text, re.MULTILINE)]


def test_the_demo_goes_the_whole_way(rehearsal):
    out, result = rehearsal
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {
        "rows", "train.yaml", "run", "labels", "router", "report", "bundle", "demo.json",
    }  # fmt: skip
    assert list((out / "rows" / "pictures").rglob("*.png"))
    for said in (
        "right answers by kind and scale",
        "not tested: nothing, since hardly an answer is right",
        "(right is: ",
        "next: ",
    ):
        assert said in result.output
    assert result.output.strip().splitlines()[-1].startswith("next: mvlm run ")
    facts = json.loads((out / "demo.json").read_text())
    assert facts["rehearsal"]
    assert set(facts["seconds"]) == {"data", "train", "label", "fit-router", "report", "export", "run"}


def test_an_unlearned_model_is_said_to_be_no_use_for_a_router(rehearsal):
    _, result = rehearsal
    assert "HARDLY AN ANSWER IS RIGHT" in result.output
    assert "THE ROUTER IS CONSTANT" in result.output


def test_run_again_it_says_what_is_there(rehearsal, mvlm):
    out, _ = rehearsal
    again = mvlm("demo", "--rehearse", "--out", out)
    assert again.exit_code == 2
    assert (
        "holds rows, train.yaml, run, labels, router, report, bundle already: --overwrite makes each anew"
        in again.output
    )
    assert "is not empty" in mvlm("demo", "--rehearse", "--out", out.parent).output


def test_the_pipeline_is_the_demo_in_verbs(rehearsal):
    _, result = rehearsal
    demo = [shlex.split(line)[1:] for line in re.findall(r"^\$ (mvlm .+)$", result.output, re.MULTILINE)]
    script = verbs((ROOT / "examples" / "pipeline.sh").read_text())
    assert [_verb(words) for words in script] == [_verb(words) for words in demo]
    subprocess.run(["bash", "-n", ROOT / "examples" / "pipeline.sh"], check=True)


def _verb(words: list[str]) -> str:
    return " ".join(words[:2]) if words[0] == "data" else words[0]


def test_the_bare_verbs_work_one_after_another(rehearsal, tmp_path, monkeypatch, mvlm):
    """In an empty folder, with every path a default, and a subset of scales in the bundle."""
    monkeypatch.chdir(tmp_path)
    assert mvlm("data", "scenes", "--train", 40, "--val", 14, "--test", 14, "--family", "query").exit_code == 0
    config = yaml.safe_load(Path("train.yaml").read_text())
    for stage in config["stages"]:
        stage["steps"] = 2
    Path("train.yaml").write_text(yaml.safe_dump(config))
    for words in (
        ["data", "check"],
        ["train"],
        ["label"],
        ["fit-router"],
        ["report"],
        ["export", "--scales", "9,36,144"],
    ):
        result = mvlm(*words)
        assert result.exit_code == 0, result.output
    following = shlex.split(result.output.strip().splitlines()[-1].removeprefix("next: mvlm "))
    asked = mvlm(*following)
    assert asked.exit_code == 0, asked.output
    named = mvlm(*following[:3], "--scale", "9")
    assert "9 tokens: the scale that was named" in named.output


WRITES = {
    "data scenes": "rows", "train": "run", "label": "labels", "fit-router": "router",
    "report": "report", "export": "bundle",
}  # fmt: skip


# The demo's own example is the rehearsal; those of checkpoints run in test_checkpoint_commands; `serve` runs on and on
# (test_serve_commands), `build` needs a bundle for TensorRT (test_device_commands), `benchmark` lmms-eval
# (test_lmms_eval), and the example of `init` names parts on the hub (test_init).
ELSEWHERE = {"data", "init", "demo", "import", "export-checkpoint", "serve", "build", "benchmark"}


@pytest.mark.parametrize("verb", ["data", "data scenes", "data check", *(v for v in VERBS if v not in ELSEWHERE)])
def test_every_help_example_runs(rehearsal, tmp_path, monkeypatch, mvlm, verb):
    """In a folder that holds everything but what the example writes."""
    demo, _ = rehearsal
    for name in ("rows", "run", "labels", "router", "report", "bundle"):
        if name != WRITES.get(verb):
            (tmp_path / name).symlink_to(demo / name)
    if verb != "data scenes":
        config = yaml.safe_load((demo / "train.yaml").read_text())
        config["stages"] = [stage | {"steps": 2} for stage in config["stages"]]
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(next((demo / "rows" / "pictures" / "test").rglob("*.png")), tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^ +mvlm (.+)$", mvlm(*verb.split(), "--help").output, re.MULTILINE)
    assert examples
    for example in examples:
        example = re.sub(r"(--verify-rows) \d+", r"\1 5", example)  # a test need not compare hundreds
        result = mvlm(*shlex.split(example))
        assert result.exit_code == 0, f"{example}: {result.output}"


def test_same_seed_same_labels(scenes, tmp_path, mvlm):
    for name in ("one", "two"):
        steps = ("stages.0.steps=2", "stages.1.steps=2", "seed=7")
        assert mvlm("train", scenes.parent / "train.yaml", *steps, "--out", tmp_path / name).exit_code == 0
        labelled = mvlm(
            "label", tmp_path / name, "--rows", scenes, "--scales", "1,36", "--out", tmp_path / f"{name}-labels"
        )
        assert labelled.exit_code == 0, labelled.output
    for file in ("labels.parquet", "features.parquet"):
        assert (tmp_path / "one-labels" / file).read_bytes() == (tmp_path / "two-labels" / file).read_bytes()


# What CI types itself: the demo runs these verbs at full size, and `make` the rest.
RUN_BY_CI = {"data scenes", "train", "demo"}


def test_every_command_of_the_readme_runs(rehearsal, tmp_path, monkeypatch, mvlm):
    demo, _ = rehearsal
    monkeypatch.chdir(demo)
    commands = [words for words in verbs(README) if _verb(words) not in RUN_BY_CI]
    assert len(commands) >= 6
    for words in commands:
        writes = words[0] in ("label", "fit-router", "report", "export")
        result = mvlm(*words, *(["--out", tmp_path / words[0]] if writes else []))
        assert result.exit_code == 0, f"{words}: {result.output}"


def test_the_readmes_python_runs(rehearsal, monkeypatch):
    demo, _ = rehearsal
    snippets = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    assert snippets
    for snippet in snippets:
        picture = next((demo / "rows" / "pictures" / "test").rglob("*.png"))
        done = subprocess.run(
            [sys.executable, "-c", snippet.replace("picture.png", str(picture))],
            cwd=demo,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_the_readme_shows_files_that_are_there():
    shown = re.findall(r"\]\(([^)#]+)\)", README)
    assert shown
    for path in shown:
        assert path.startswith("http") or (ROOT / path).exists(), path


def test_the_readmes_figures_are_those_of_the_json_files():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    assert figures.unmarked(figures.inserted(README)) == figures.unmarked(README)
