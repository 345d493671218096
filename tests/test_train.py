"""The recipe on a toy: every stage runs, every step is logged, and a resumed run is the uninterrupted one."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mvlm_core import train as recipe
from mvlm_core.build import build_model, build_processor
from mvlm_core.config import read_config
from mvlm_core.optim import MuonWithAdamW, build_optimizer
from mvlm_core.stages import LearningRates, StageConfig

SMALL = (
    "model.vision.embedding_size=8", "model.vision.hidden_sizes=[8, 16]", "model.vision.depths=[1, 1]",
    "model.text.hidden_size=32", "model.text.intermediate_size=32", "model.text.head_dim=8",
    "model.text.num_hidden_layers=1", "precision=float32", "stages.0.pictures=4", "stages.1.pictures=4",
    "stages.0.steps=4", "stages.1.steps=6", "stages.1.save_every=2", "stages.1.running_share=0.5",
)  # fmt: skip


COSTS = ("seconds", "memory_mib", "pictures_per_s", "tokens_per_s")


def metrics(run: Path) -> list[dict]:
    """What every step learned; what it cost is another matter, and differs from run to run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in COSTS} for line in lines]


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    from click.testing import CliRunner

    from mvlm_core.cli import main

    out = tmp_path_factory.mktemp("trained") / "run"
    result = CliRunner().invoke(main, ["train", str(scenes.parent / "train.yaml"), *SMALL, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "next: mvlm label" in result.output
    return out


def test_a_run_is_a_model_folder_with_its_history(trained):
    there = {path.name for path in trained.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "train.yaml", "metrics.jsonl"} <= there
    assert "modeling_mvlm.py" in there  # transformers loads it where this package is not installed
    lines = metrics(trained)
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("patches", i) for i in range(1, 5)),
        *(("answers", i) for i in range(1, 7)),
    ]
    assert [line["num_visual_tokens"] for line in lines[:4]] == [[]] * 4
    assert {m for line in lines[4:] for m in line["num_visual_tokens"]} <= {1, 4, 9, 36, 144}
    assert all(line["loss"] > 0 for line in lines)


def test_resumed_equals_uninterrupted(trained, scenes, tmp_path, mvlm):
    """What a run killed after step 5 of the second stage leaves behind: a checkpoint at 4 and a line too many."""
    cut = tmp_path / "run"
    shutil.copytree(trained, cut)
    (cut / "model.safetensors").unlink()
    (cut / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics(trained)[:9]))
    shutil.rmtree(cut / "checkpoints" / "1-answers" / "checkpoint-6")
    result = mvlm("train", scenes.parent / "train.yaml", *SMALL, "--out", cut, "--resume")
    assert result.exit_code == 0, result.output
    assert metrics(cut) == metrics(trained)
    again, whole = load_file(cut / "model.safetensors"), load_file(trained / "model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_same_seed_same_weights(trained, scenes, tmp_path, mvlm):
    result = mvlm("train", scenes.parent / "train.yaml", *SMALL, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_what_cannot_be_resumed_or_replaced(trained, scenes, tmp_path, mvlm):
    config = scenes.parent / "train.yaml"
    for out, options, message in (
        (trained, ["--resume"], "is a finished run"),
        (tmp_path, ["--resume"], "holds no unfinished run"),
        (trained, [], "is not empty"),
    ):
        result = mvlm("train", config, *SMALL, "--out", out, *options)
        assert result.exit_code == 2
        assert message in result.output
    cut = tmp_path / "cut"
    shutil.copytree(trained, cut)
    (cut / "model.safetensors").unlink()
    result = mvlm("train", config, *SMALL, "seed=9", "--out", cut, "--resume")
    assert result.exit_code == 2
    assert "another configuration" in result.output


def test_rows_without_a_train_split_or_tags(scenes, tmp_path, mvlm):
    config = scenes.parent / "train.yaml"
    rows = tmp_path / "rows"
    shutil.copytree(scenes, rows)
    (rows / "patch_tags.npz").unlink()
    result = mvlm("train", config, *SMALL, f"rows={rows}", "--out", tmp_path / "a")
    assert result.exit_code == 2
    assert "needs tags" in result.output
    file = rows / "rows.jsonl"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if '"train"' not in line))
    result = mvlm("train", config, *SMALL, f"rows={rows}", "--out", tmp_path / "b")
    assert result.exit_code == 2
    assert "no rows of the split train" in result.output


def test_frozen_parts_stay_as_they_are(scenes, tmp_path, mvlm):
    stages = ("stages.0.frozen=[language_model]", "stages.1.frozen=[vision_tower]", "stages.1.steps=2")
    config = read_config(scenes.parent / "train.yaml", (*SMALL, *stages))
    result = mvlm("train", scenes.parent / "train.yaml", *SMALL, *stages, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    between = load_file(tmp_path / "run" / "checkpoints" / "0-patches" / "checkpoint-4" / "model.safetensors")
    end = load_file(tmp_path / "run" / "model.safetensors")
    rows = [row for row in recipe.read_rows(config.rows) if row.split == "train"]
    start = build_model(config, build_processor(config, rows))
    changed = {
        part: any(not torch.equal(between[n], end[n]) for n in end if n.startswith(part))
        for part in ("vision_tower", "connector", "language_model")
    }
    assert changed == {"vision_tower": False, "connector": True, "language_model": True}
    assert all(
        torch.equal(v, between[n]) for n, v in start.state_dict().items() if n.startswith("language_model.model")
    )


def test_the_optimizer_is_the_two_of_torch():
    """Stepped as one, saved as one, loaded as one: equal to Muon and AdamW side by side."""

    def net() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.ModuleDict(
            {
                "vision_tower": torch.nn.Conv2d(3, 4, 3),
                "language_model": torch.nn.ModuleDict({"table": torch.nn.Embedding(5, 4)}),
                "connector": torch.nn.Linear(4, 4),
            }
        )

    def build(model) -> MuonWithAdamW:
        stage = StageConfig(name="a", steps=1, matrix_lr=0.1, lr=0.01, lr_of=LearningRates(vision_tower=0.0))
        return build_optimizer(model, stage, model["language_model"]["table"])

    def step(model, optimizer) -> None:
        for p in model.parameters():
            p.grad = torch.ones_like(p) * p.mean()
        optimizer.step()

    one, two = net(), net()
    ours = build(one)
    muon = torch.optim.Muon([two["connector"].weight], lr=0.1, weight_decay=0.0)
    adamw = torch.optim.AdamW(
        [two["language_model"]["table"].weight, two["connector"].bias], lr=0.01, weight_decay=0.0, betas=(0.9, 0.98)
    )
    before = one["vision_tower"].weight.clone()
    for _ in range(3):
        step(one, ours)
        step(two, muon)
        adamw.step()
    torch.testing.assert_close(one.state_dict(), two.state_dict())
    assert torch.equal(one["vision_tower"].weight, before)  # a rate of 0 moves nothing

    three = net()
    three.load_state_dict(one.state_dict())
    other = build(three)
    other.load_state_dict(copy.deepcopy(ours.state_dict()))  # as from a file
    for group in (*ours.param_groups, *other.param_groups):  # as a scheduler does it
        group["lr"] *= 0.5
    step(one, ours)
    step(three, other)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), three.parameters(), strict=True))
