"""The recipe on a toy: every stage runs, every step is logged, and a resumed run is the uninterrupted one."""

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from export.runtime.errors import MvlmError
from mvlm_core.train import recipe
from mvlm_core.train.build import build_model, build_processor, resolve_config
from mvlm_core.train.config import read_config
from mvlm_core.train.metrics_file import MetricsFile
from mvlm_core.train.optim import MuonWithAdamW, build_optimizer
from mvlm_core.train.stages import LearningRates, StageConfig
from tests.conftest import rewrite_rows
from tests.support.tiny import SMALL_MODEL, metrics

SMALL = (
    *SMALL_MODEL, "stages.0.steps=4", "stages.1.steps=6", "stages.1.save_every=2", "stages.1.running_share=0.5",
    "keep_checkpoints=true",
)  # fmt: skip


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
    assert json.loads((trained / "processor_config.json").read_text())["default_scale"] == 144
    assert json.loads((trained / "config.json").read_text())["num_visual_tokens"] == 144


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


def test_killed_at_any_step_and_started_again_is_the_uninterrupted_run(trained, scenes, tmp_path, mvlm):
    """SIGKILL, in the middle of whatever it was doing, a checkpoint perhaps."""
    out = tmp_path / "run"
    arguments = ["train", str(scenes.parent / "train.yaml"), *SMALL, "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "mvlm_core.cli", *arguments], stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None and (not (out / "metrics.jsonl").is_file() or len(metrics(out)) < 7):
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        process.kill()
        process.wait()
    assert not (out / "model.safetensors").exists()
    others = rewrite_rows(shutil.copytree(scenes, tmp_path / "others"), lambda told: told[::-1])
    result = mvlm(*arguments, f"rows={others}", "--resume")
    assert result.exit_code == 2
    assert f"{out} began with other rows than those of {others}" in result.output
    result = mvlm(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert metrics(out) == metrics(trained)
    again, whole = load_file(out / "model.safetensors"), load_file(trained / "model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_checkpoint_cut_short_is_said_and_the_one_before_taken(trained, scenes, tmp_path, mvlm):
    cut = tmp_path / "run"
    shutil.copytree(trained, cut)
    (cut / "model.safetensors").unlink()
    last = cut / "checkpoints" / "1-answers" / "checkpoint-6" / "optimizer.pt"
    last.write_bytes(last.read_bytes()[:-1])
    with (cut / "metrics.jsonl").open("a") as file:  # and so was what it was about to say
        file.write('{"stage": "answers", "st')
    result = mvlm("train", scenes.parent / "train.yaml", *SMALL, "--out", cut, "--resume")
    assert result.exit_code == 0, result.output
    assert "checkpoint-6 was cut short" in result.output
    assert metrics(cut) == metrics(trained)


def test_checkpoints_go_when_the_run_ended_well_unless_they_are_kept(trained, scenes, tmp_path, mvlm):
    assert (trained / "checkpoints" / "1-answers" / "checkpoint-6").is_dir()
    short = (*SMALL, "stages.0.steps=1", "stages.1.steps=1", "keep_checkpoints=false")
    assert mvlm("train", scenes.parent / "train.yaml", *short, "--out", tmp_path / "run").exit_code == 0
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_nothing_is_replaced_before_the_rows_are_read(trained, scenes, tmp_path, mvlm):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    result = mvlm("train", scenes.parent / "train.yaml", *SMALL, "rows=nowhere", "--out", out, "--overwrite")
    assert result.exit_code == 2
    assert (out / "model.safetensors").is_file()


def test_the_loss_at_each_scale_is_evaluated_on_the_way(scenes, tmp_path, mvlm):
    evaluated = [f"stages.1.{told}" for told in ("steps=4", "evaluate_every=2", "evaluate_pictures=5", "show=[1,36]")]
    result = mvlm("train", scenes.parent / "train.yaml", *SMALL, *evaluated, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    lines = metrics(tmp_path / "run")
    found = {line["step"]: line["evaluation"] for line in lines if "evaluation" in line}
    assert set(found) == {2, 4}
    assert set(found[2]) == {"1", "4", "9", "36", "144"}
    assert all(0 < loss < 20 for losses in found.values() for loss in losses.values())
    asked = [line["sample"] for line in lines if "sample" in line]
    assert [one["scale"] for one in asked] == ["144", "144"]
    assert asked[0]["id"] != asked[1]["id"]
    assert "stage answers, step 4: loss on val at each scale  1: " in result.output
    assert f"  at 144: {asked[1]['question']!r} -> " in result.output
    assert [line["num_visual_tokens"] for line in lines if line["stage"] == "answers" and "loss" in line] == [
        [1, 36]
    ] * 4


def test_evaluation_needs_rows_to_evaluate_on(scenes, tmp_path, mvlm):
    rows = tmp_path / "rows"
    shutil.copytree(scenes, rows)
    rewrite_rows(rows, lambda told: [row for row in told if row["split"] == "train"])
    result = mvlm(
        "train",
        scenes.parent / "train.yaml",
        *SMALL,
        f"rows={rows}",
        "stages.1.evaluate_every=1",
        "--out",
        tmp_path / "a",
    )
    assert result.exit_code == 2
    assert "evaluate_every needs rows of the split val" in result.output
    assert not (tmp_path / "a").exists(), "a later stage's fault is found before the first begins"


def test_activation_checkpointing_and_accumulation_change_no_number(scenes, tmp_path, mvlm):
    """In eval mode of the tower's batch norms: their statistics are those of a pass, and a half pass has others."""
    common = ("stages.0.steps=1", "stages.1.frozen=[vision_tower]", "stages.1.steps=3", "stages.1.show=[1,9,144]")
    losses = []
    for n, extra in enumerate(([], ["stages.1.accumulate=2", "stages.1.activation_checkpointing=true"])):
        out = tmp_path / str(n)
        result = mvlm("train", scenes.parent / "train.yaml", *SMALL, *common, *extra, "--out", out)
        assert result.exit_code == 0, result.output
        losses.append([line["loss"] for line in metrics(out) if line["stage"] == "answers"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_streamed_rows_train_as_others_do(trained, scenes, tmp_path, mvlm):
    """A language model that starts from nothing needs all words first, so a stream wants one that has its own."""
    config = scenes.parent / "train.yaml"
    streamed = ("stream=true", f"model={{start: {trained}}}")
    out = tmp_path / "run"
    result = mvlm("train", config, *SMALL, *streamed, "stages.0.steps=1", "stages.1.steps=2", "--out", out)
    assert result.exit_code == 0, result.output
    assert f"vision tower and language model: from {trained}" in result.output
    assert len(metrics(out)) == 3
    for overrides, message in (
        (["stream=true"], "needs a tokenizer made of all rows"),
        ([*streamed, "stages.1.evaluate_every=1"], "leave evaluate_every out"),
        ([*streamed, "stages.1.steps=null", "stages.1.epochs=1"], "say steps, not epochs"),
    ):
        result = mvlm("train", config, *SMALL, *overrides, "--out", tmp_path / "other")
        assert result.exit_code == 2
        assert message in result.output


def test_a_first_stage_of_captions_is_for_a_second_one(trained, scenes, tmp_path, mvlm):
    plain = (f"model={{start: {trained}, chat_template: plain}}", "stages.0.steps=1", "stages.1.steps=1")
    weighed = "stages.1.task_weights={dots: 2, dotts: 2}"
    result = mvlm("train", scenes.parent / "train.yaml", *SMALL, *plain, weighed, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "stage answers: task_weights names dotts, and no row to train on has it" in result.output
    assert f"next: mvlm train STAGE2.yaml model.start={tmp_path / 'run'}" in result.output
    result = mvlm("label", tmp_path / "run", "--rows", scenes, "--out", tmp_path / "labels")
    assert result.exit_code == 2
    assert "the chat template shows no question" in result.output


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
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "model.safetensors.index.json").write_text("{}")
    result = mvlm("train", config, *SMALL, "--out", sharded, "--resume")
    assert "is a finished run" in result.output
    cut = tmp_path / "cut"
    shutil.copytree(trained, cut)
    (cut / "model.safetensors").unlink()
    result = mvlm("train", config, *SMALL, "seed=9", "--out", cut, "--resume")
    assert result.exit_code == 2
    assert "another configuration" in result.output


@pytest.fixture
def unfinished(trained, tmp_path) -> Path:
    """What a run that was killed in its last write leaves behind, a part of a file among it."""
    cut = tmp_path / "run"
    shutil.copytree(trained, cut)
    (cut / "model.safetensors").unlink()
    (cut / "checkpoints" / "finished").mkdir()
    (cut / "checkpoints" / "finished" / ".tmpoSsOz5").write_bytes(b"half")
    return cut


def test_a_run_goes_on_with_its_own_rows_alone(unfinished, scenes, tmp_path, mvlm):
    config, rows = scenes.parent / "train.yaml", tmp_path / "rows"
    shutil.copytree(scenes, rows)
    resume = ("train", config, *SMALL, f"rows={rows}", "--out", unfinished, "--resume")
    before = (rows / "rows.jsonl").read_text()
    rewrite_rows(rows, lambda told: [told[0] | {"answers": ["other"]}, *told[1:]])
    result = mvlm(*resume)
    assert result.exit_code == 2
    assert f"{unfinished} began with other rows than those of {rows}" in result.output
    assert not (unfinished / "model.safetensors").exists()
    (rows / "rows.jsonl").write_text(before)  # the same rows, in another place
    result = mvlm(*resume)
    assert result.exit_code == 0, result.output
    assert not [path for path in unfinished.rglob("*") if path.name.startswith(".tmp") or path.name == "finished"]


def test_a_run_goes_on_with_its_own_pictures_alone(unfinished, scenes, tmp_path, mvlm):
    rows = tmp_path / "rows"
    shutil.copytree(scenes, rows)
    told = (json.loads(line) for line in (rows / "rows.jsonl").read_text().splitlines())
    picture = rows / next(row["image"] for row in told if row.get("split", "train") == "train")
    data, times = bytearray(picture.read_bytes()), picture.stat()
    data[len(data) // 2] ^= 1  # of the same size and time: what it holds counts
    picture.write_bytes(data)
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    result = mvlm("train", scenes.parent / "train.yaml", *SMALL, f"rows={rows}", "--out", unfinished, "--resume")
    assert result.exit_code == 2
    assert f"{unfinished} began with other pictures than those of {rows}" in result.output


@pytest.mark.parametrize(("line", "says"), [("{", "line 2"), ("[]", "line 2"), ('{"step": 1}', "line 2")])
def test_a_history_that_was_edited(tmp_path, line, says):
    file = tmp_path / "metrics.jsonl"
    whole = json.dumps({"stage": "other", "step": 9})
    file.write_text(f"{whole}\n{line}\n")
    stage = SimpleNamespace(name="answers")
    shown = SimpleNamespace(progress=lambda name, steps: lambda: None)
    history = MetricsFile(file, stage, SimpleNamespace(scales=[()]), shown, None)
    state = SimpleNamespace(is_world_process_zero=True)
    with pytest.raises(MvlmError, match=f"{says} of .* is no step of a run"):
        history.on_train_begin(None, state, None)
    file.unlink()
    history.on_train_begin(None, state, None)
    assert file.read_text() == ""


def test_an_unfinished_run_of_an_older_mvlm_says_nothing_of_its_rows(unfinished, scenes, mvlm):
    (unfinished / "run.json").unlink()
    result = mvlm("train", scenes.parent / "train.yaml", *SMALL, "--out", unfinished, "--resume")
    assert result.exit_code == 0, result.output
    assert "does not say which rows it began with" in result.output
    assert f"that the pictures of {scenes} are those that {unfinished} began with is taken on trust" in result.output


def test_rows_without_a_train_split_or_tags(scenes, tmp_path, mvlm):
    config = scenes.parent / "train.yaml"
    rows = tmp_path / "rows"
    shutil.copytree(scenes, rows)
    result = mvlm("train", config, *SMALL, "stages.1.tag_weights={shap: 2}", "--out", tmp_path / "a")
    assert result.exit_code == 2
    assert "tag_weights names shap" in result.output
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
    config = resolve_config(read_config(scenes.parent / "train.yaml", (*SMALL, *stages)))
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
