"""A run that diverges: it stops at the first step that is not finite, says so, and keeps what was healthy."""

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.train.divergence import NotFinite, all_finite, require_finite_log
from tests.support.tiny import SMALL_MODEL, metrics

SHORT = (*SMALL_MODEL, "stages.0.steps=1", "stages.1.steps=6", "stages.1.show=[36]", "stages.1.warmup=0")


@pytest.fixture
def train(scenes, tmp_path, mvlm):
    def run(*overrides: str) -> tuple[Path, str]:
        out = tmp_path / "run"
        done = mvlm("train", scenes.parent / "train.yaml", *SHORT, *overrides, "--out", out)
        assert done.exit_code == 1, done.output
        assert isinstance(done.exception, SystemExit), done.exception
        assert not (out / "model.safetensors").exists()
        assert "a trained model" not in done.output
        return out, done.output

    return run


def break_loss(monkeypatch, *, step: int, value: float = math.nan, in_evaluation: bool = False) -> None:
    """Let the loss of the answers be no number from a step on."""
    forward, seen = MvlmForConditionalGeneration.forward, []

    @functools.wraps(forward)
    def broken(self, *arguments, **named):
        output = forward(self, *arguments, **named)
        if named.get("labels") is not None and self.training is not in_evaluation:
            seen.append(1)
            if len(seen) >= step:
                output.loss = output.loss * value
        return output

    monkeypatch.setattr(MvlmForConditionalGeneration, "forward", broken)


def healthy(stage: Path) -> list[str]:
    """The checkpoints of a stage, every one of them finite."""
    found = sorted(path.name for path in stage.glob("checkpoint-*"))
    for name in found:
        assert all_finite(load_file(stage / name / "model.safetensors").values())
        assert (stage / name / "whole.json").is_file()
    return found


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("save_every", "kept"), [("null", ["checkpoint-3"]), ("1", ["checkpoint-2", "checkpoint-3"]),
                             ("2", ["checkpoint-2", "checkpoint-3"])]
)  # fmt: skip
def test_it_stops_at_the_first_step_and_keeps_the_weights_before(train, monkeypatch, save_every, kept, value):
    break_loss(monkeypatch, step=4, value=value)
    out, said = train(f"stages.1.save_every={save_every}")
    assert "stage answers: the gradient is not finite in step 4: lower the learning rates (now lr 0.002" in said
    assert f"{out / 'checkpoints' / '1-answers' / 'checkpoint-3'} holds the weights before" in said
    assert healthy(out / "checkpoints" / "1-answers") == kept
    assert [line["step"] for line in metrics(out) if line["stage"] == "answers"] == [1, 2, 3]


def test_the_weights_before_are_those_that_a_shorter_run_ends_with(train, monkeypatch, scenes, tmp_path, mvlm):
    with monkeypatch.context() as patched:
        break_loss(patched, step=4)
        out, _ = train("stages.1.schedule=constant")
    again = mvlm("train", scenes.parent / "train.yaml", *SHORT, "stages.1.schedule=constant", "stages.1.save_every=3",
                 "keep_checkpoints=true", "--out", tmp_path / "whole")  # fmt: skip
    assert again.exit_code == 0, again.output
    kept, whole = (
        load_file(folder / "checkpoints" / "1-answers" / "checkpoint-3" / "model.safetensors")
        for folder in (out, tmp_path / "whole")
    )
    assert all(torch.equal(kept[name], whole[name]) for name in whole)


def test_in_its_first_step_nothing_was_learned(train, monkeypatch):
    break_loss(monkeypatch, step=1)
    out, said = train()
    assert "is not finite in step 1: no weight had moved yet, so look at the weights that it starts from" in said
    assert healthy(out / "checkpoints" / "1-answers") == []


def test_a_rate_that_drives_weights_apart(train):
    """Found by the weights themselves: the step that broke them was finite until it was taken."""
    out, said = train("stages.1.lr=1e39", "stages.1.matrix_lr=null", "stages.1.save_every=1")
    assert (
        "stage answers: a weight is not finite in step 1: lower the learning rates (now lr 1e+39, vision_tower" in said
    )
    assert healthy(out / "checkpoints" / "1-answers") == []


def test_an_evaluation_that_is_not_finite(train, monkeypatch):
    break_loss(monkeypatch, step=1, in_evaluation=True)
    out, said = train("stages.1.evaluate_every=2", "stages.1.save_every=2")
    assert "the loss of the split val is not finite in step 2" in said
    for line in (out / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_the_log_is_looked_at_too():
    """Where gradients are not at hand (DeepSpeed), the step is known by what is logged behind it."""
    require_finite_log({"loss": 1.0, "grad_norm": 2.0, "learning_rate": 0.1, "epoch": math.nan}, 3)
    for name, what in (("loss", "the loss"), ("grad_norm", "the grad_norm"), ("eval_9_loss", "the split val")):
        with pytest.raises(NotFinite, match=what):
            require_finite_log({name: math.inf}, 1)


def test_what_is_finite():
    whole = torch.ones(3)
    assert all_finite([])
    assert all_finite([whole, torch.tensor([2**62]), torch.ones(2, dtype=torch.bfloat16)])
    for bad in (math.nan, math.inf, -math.inf):
        assert not all_finite([whole, torch.tensor([1.0, bad])])
