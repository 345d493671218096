"""Two processes against one: the same losses, ranks with nothing but text among them."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mvlm_core.cli import main
from tests.support.families import make, picture
from tests.support.tiny import SMALL_MODEL, drawn_picture, metrics

STAGES = ("stages.0.steps=1", "stages.0.accumulate={passes}", "stages.1.accumulate={passes}", "stages.1.steps=6",
          "stages.1.show=[1,9,144]", "stages.1.pictures=2", "stages.1.patch_loss_weight=0", "stages.0.loss=answers",
          "stages.1.activation_checkpointing=true")  # fmt: skip


@pytest.fixture(scope="module")
def mixed(scenes, tmp_path_factory) -> Path:
    """The drawn benchmark's recipe over rows half of which have no picture."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = []
    for i in range(6):
        drawn_picture(i).save(folder / f"{i}.png")
        rows.append({"id": f"p{i}", "image": f"{i}.png", "question": "what is it?", "answers": ["a disc"]})
        rows.append({"id": f"t{i}", "messages": [
            {"role": "user", "content": "say a word"}, {"role": "assistant", "content": f"word {i}"}]})  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = yaml.safe_load((scenes.parent / "train.yaml").read_text())
    config["rows"] = "rows.jsonl"
    # A tower with weights that no gradient reaches: its last layer and norm, behind the layer that is read.
    config["model"]["vision"] = {
        "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 96, "patch_size": 8,
    }  # fmt: skip
    config["model"]["vision_feature_layer"] = -2
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    return folder / "train.yaml"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def tiled(tmp_path_factory) -> Path:
    """A model with tiles that was imported, over pictures of several shapes and rows without any."""
    folder = tmp_path_factory.mktemp("tiled")
    rows = []
    for n, size in enumerate([(200, 90), (60, 60), (100, 240), (150, 150)]):
        picture(*size, seed=n).save(folder / f"{n}.png")
        rows += [{"id": f"{n}{asked}", "image": f"{n}.png", "question": asked, "answers": ["red"]} for asked in "ab"]
        rows.append({"id": f"t{n}", "messages": [
            {"role": "user", "content": "say a word"}, {"role": "assistant", "content": f"word {n}"}]})  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    imported = ["import", str(make("smolvlm", folder / "checkpoint")), "--out", str(folder / "begin")]
    assert CliRunner().invoke(main, imported).exit_code == 0
    stage = {"name": "all", "show": [4, "4@4", "native"], "steps": 4, "pictures": 2, "lr": 1e-3}
    config = {"rows": "rows.jsonl", "precision": "float32", "scales": [4, "4@4", "native"], "stages": [stage]}
    (folder / "train.yaml").write_text(yaml.safe_dump(config | {"model": {"start": "begin"}}))
    return folder / "train.yaml"


def train(config: Path, out: Path, settings: tuple[str, ...], *, processes: int) -> list[dict]:
    overrides = [setting.format(passes=2 // processes) for setting in settings]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port())]
    command = [*(launcher if processes > 1 else []), "-m", "mvlm_core.cli", "train", config, *overrides]
    command = [sys.executable, *map(str, command), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: mvlm label") == 1
    return metrics(out)


@pytest.mark.slow
def test_two_processes_lose_what_one_with_twice_the_accumulation_does(mixed, tmp_path):
    small = tuple(setting for setting in SMALL_MODEL if not setting.startswith("model.vision"))
    one, two = (train(mixed, tmp_path / str(n), small + STAGES, processes=n) for n in (1, 2))
    assert len(one) == len(two) == 7
    for alone, shared in zip(one, two, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
    assert {tuple(line["num_visual_tokens"]) for line in two[1:]} == {(1, 9, 144)}


@pytest.mark.slow
def test_two_processes_lose_the_same_with_tiles(tiled, tmp_path):
    """Each has pictures of other shapes, so other numbers of views."""
    settings = ("stages.0.accumulate={passes}", "stages.0.activation_checkpointing=true")
    one, two = (train(tiled, tmp_path / str(n), settings, processes=n) for n in (1, 2))
    assert len(one) == len(two) == 4
    for alone, shared in zip(one, two, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
        assert shared["num_visual_tokens"] == alone["num_visual_tokens"]
    assert {scale for line in two for scale in line["num_visual_tokens"]} == {4, "4@4", "native"}
