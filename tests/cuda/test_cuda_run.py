"""Whole verbs on a GPU: train, resume, adapt, shard, label, and answer as the CPU does."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.cli import main
from tests.support.tiny import SMALL_MODEL, drawn_picture, metrics

pytestmark = pytest.mark.cuda
ROOT = Path(__file__).parents[2]
# A head of 16 is the least that FlexAttention takes.
SHORT = (*SMALL_MODEL, "model.text.head_dim=16", "stages.0.steps=2", "stages.1.steps=6", "stages.1.save_every=3",
         "keep_checkpoints=true")  # fmt: skip
# The first token's margin below which two devices may answer differently: float32 sums in another order.
TIE = 1e-3


@pytest.fixture(scope="module")
def trained(device, scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cuda") / "run"
    verb("train", scenes.parent / "train.yaml", *SHORT, "--out", out)
    return out


def verb(*arguments: str | Path) -> None:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output[-2000:]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run)]


def test_bf16_loses_what_float32_does(trained, scenes, tmp_path):
    verb("train", scenes.parent / "train.yaml", *SHORT, "precision=bf16", "--out", tmp_path / "bf16")
    assert losses(tmp_path / "bf16") == pytest.approx(losses(trained), rel=0.03)


def test_flex_attention_in_a_run(cuda, trained, scenes, tmp_path):
    verb("train", scenes.parent / "train.yaml", *SHORT, "attention.text=flex_attention", "--out", tmp_path / "flex")
    assert losses(tmp_path / "flex") == pytest.approx(losses(trained), rel=1e-3)


def test_a_stopped_run_goes_on(trained, scenes, tmp_path):
    """Atomic sums differ from one time to the next, so the same losses and not the same bits."""
    cut = tmp_path / "run"
    shutil.copytree(trained, cut)
    (cut / "model.safetensors").unlink()
    shutil.rmtree(cut / "checkpoints" / "1-answers" / "checkpoint-6")
    verb("train", scenes.parent / "train.yaml", *SHORT, "--out", cut, "--resume")
    assert losses(cut) == pytest.approx(losses(trained), rel=1e-3)


def test_adapters_are_trained_and_folded_in(device, scenes, tmp_path):
    lora = ("stages.1.lora={rank: 2, alpha: 4}", "stages.1.matrix_lr=null")
    verb("train", scenes.parent / "train.yaml", *SHORT, *lora, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    model, _ = load_run(tmp_path / "run", device=device)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_sharded_in_one_process(cuda, scenes, tmp_path):
    """FSDP2 as the example configures it, one stage at a time; the run that comes out is whole."""
    config = yaml.safe_load((ROOT / "examples" / "configs" / "accelerate_fsdp.yaml").read_text())
    config |= {"num_processes": 1, "mixed_precision": "no"}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(config))
    recipe = yaml.safe_load((scenes.parent / "train.yaml").read_text())
    recipe |= {"rows": str(scenes), "stages": [recipe["stages"][1] | {"matrix_lr": None}]}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(recipe))
    small = [told.replace("stages.1", "stages.0") for told in SHORT if not told.startswith("stages.0")]
    command = ["train", str(tmp_path / "train.yaml"), *small]
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "accelerate.yaml"), "-m"]
    done = subprocess.run(
        [sys.executable, *launch, "mvlm_core.cli", *command, "--out", str(tmp_path / "sharded")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.partition("failed (exitcode")[0][-3000:]  # behind it is the launcher's own
    verb(*command, "--out", tmp_path / "whole")
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)
    shapes = [
        {name: value.shape for name, value in load_file(tmp_path / run / "model.safetensors").items()}
        for run in ("sharded", "whole")
    ]
    assert shapes[0] == shapes[1]


def test_labels_are_the_cpus_but_for_ties(device, trained, scenes, tmp_path):
    tables = []
    for place in ("cpu", device):
        out = tmp_path / str(len(tables))
        verb("label", trained, "--rows", scenes, "--device", place, "--out", out)
        lines = pq.read_table(out / "labels.parquet").to_pylist()
        tables.append({(line["id"], str(line.get("scale", line["num_visual_tokens"]))): line for line in lines})
    cpu, gpu = tables
    assert set(cpu) == set(gpu)
    differ = [key for key, line in cpu.items() if line["prediction"] != gpu[key]["prediction"]]
    assert all(cpu[key]["margin"] < TIE for key in differ), [(cpu[key], gpu[key]) for key in differ][:3]
    assert len(differ) < 0.01 * len(cpu)
    for key, line in cpu.items():
        assert gpu[key]["margin"] == pytest.approx(line["margin"], abs=TIE)


def test_generate_writes_what_the_cpu_writes(device, trained):
    texts = []
    for place in ("cpu", device):
        model, processor = load_run(trained, device=place)
        questions = [processor.ask("what colour is the star?"), processor.ask("how many dots are there?")]
        asked = processor(images=[drawn_picture(n) for n in range(2)], num_visual_tokens=[9, 144], text=questions)
        told = {name: value.to(place) for name, value in asked.items() if isinstance(value, torch.Tensor)}
        texts.append(model.generate(**told, max_new_tokens=8, do_sample=False).cpu().tolist())
    assert texts[0] == texts[1]


def test_the_log_says_what_a_step_cost(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert all(line["memory_mib"] > 0 and line["pictures_per_s"] > 0 for line in lines)
