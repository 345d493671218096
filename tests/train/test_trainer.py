"""transformers' Trainer as a stage sets it up: what it is told, and what it says when it cannot."""

import importlib.util

import pytest
import torch
from accelerate import PartialState
from transformers import Trainer

from export.runtime.errors import MvlmError
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.train.build import build_model, build_processor, resolve_config
from mvlm_core.train.config import read_config, scenes_config
from mvlm_core.train.optim import MuonWithAdamW
from mvlm_core.train.recipe import read_data
from mvlm_core.train.trainer import process_state, training_arguments
from tests.support.tiny import SMALL_MODEL


@pytest.fixture
def config(tmp_path):
    return scenes_config("pool", rows=tmp_path, seed=0)


def test_a_step_is_shared_out_to_processes_and_passes(config, tmp_path, monkeypatch):
    stage = config.stages[1].model_copy(update={"pictures": 16, "accumulate": 2})
    assert training_arguments(config, stage, tmp_path, steps=9).per_device_train_batch_size == 8
    process_state()
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 3)
    with pytest.raises(MvlmError, match="make pictures a multiple of 6"):
        training_arguments(config, stage, tmp_path, steps=9)


def test_a_tracker_that_is_not_installed(config, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = config.model_copy(update={"report_to": ("trackio",)})
    with pytest.raises(MvlmError, match="trackio is not installed"):
        training_arguments(told, config.stages[0], tmp_path, steps=9)


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ([], "set activation_checkpointing: true"),
        (["stages.1.activation_checkpointing=true"], "double accumulate (now 1: 4 pictures a pass)"),
        (["stages.1.activation_checkpointing=true", "stages.1.accumulate=4"], "show fewer visual tokens (now (36,)"),
    ],
)
def test_out_of_memory_says_what_to_change(scenes, tmp_path, mvlm, monkeypatch, overrides, remedy):
    forward = MvlmForConditionalGeneration.forward

    def full(self, *arguments, **named):
        if "labels" in named:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, *arguments, **named)

    monkeypatch.setattr(MvlmForConditionalGeneration, "forward", full)
    short = (*SMALL_MODEL, "stages.0.steps=1", "stages.1.steps=1", "stages.1.show=[36]")
    result = mvlm("train", scenes.parent / "train.yaml", *short, *overrides, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert f"stage answers: out of memory in step 1: {remedy}" in result.output


def test_other_errors_of_the_trainer_pass(scenes, tmp_path, mvlm, monkeypatch):
    def broken(self, *arguments, **named):
        raise RuntimeError("something else")

    monkeypatch.setattr(MvlmForConditionalGeneration, "forward", broken)
    result = mvlm("train", scenes.parent / "train.yaml", *SMALL_MODEL, "--out", tmp_path / "run")
    assert str(result.exception) == "something else"


def test_sharded_training_is_for_one_stage(scenes, tmp_path, mvlm, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    result = mvlm("train", scenes.parent / "train.yaml", *SMALL_MODEL, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "run each as a configuration of its own" in result.output
    assert not (tmp_path / "run").exists()


def test_the_optimizer_is_made_when_the_trainer_wants_it(scenes, tmp_path, mvlm, monkeypatch):
    """The Trainer refuses one that is handed over where FSDP shards."""
    begin, made = Trainer.__init__, []

    def watched(self, *arguments, **options):
        assert "optimizers" not in options
        begin(self, *arguments, **options)
        assert self.optimizer is None
        made.append(self)

    monkeypatch.setattr(Trainer, "__init__", watched)
    short = (*SMALL_MODEL, "stages.0.steps=1", "stages.1.steps=1")
    assert mvlm("train", scenes.parent / "train.yaml", *short, "--out", tmp_path / "run").exit_code == 0
    assert [type(one.optimizer.optimizer) for one in made] == [MuonWithAdamW] * 2


def test_a_tower_that_is_sharded_keeps_the_layout_that_fsdp_takes(scenes, monkeypatch):
    config = resolve_config(read_config(scenes.parent / "train.yaml", SMALL_MODEL))
    processor = build_processor(config, read_data(config).train)
    assert not all(weight.is_contiguous() for weight in build_model(config, processor).parameters())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert all(weight.is_contiguous() for weight in build_model(config, processor).parameters())
