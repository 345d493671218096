"""A run folder is loaded whole, or refused in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from bundles import pool_bundle
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from export.runtime import MvlmError
from export.runtime.artefact import sha256_file
from mvlm_core.runs import load_run, model_sha256


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(pool_bundle().run, tmp_path / "run")


def test_a_run_is_ready_to_answer(run, capfd):
    model, processor = load_run(run)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert processor.image_token_id == model.config.image_token_id
    assert model_sha256(run) == sha256_file(run / "model.safetensors")
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_that_is_no_run(run, name):
    (run / name).unlink()
    with pytest.raises(MvlmError, match=f"is not a run, it holds no {name}"):
        load_run(run)


def test_no_folder(tmp_path):
    with pytest.raises(MvlmError, match=r"holds no config\.json and no model\.safetensors"):
        model_sha256(tmp_path / "absent")


def test_a_model_of_another_kind(run):
    (run / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(MvlmError, match="holds a llama model"):
        load_run(run)


def test_a_broken_configuration(run):
    (run / "config.json").write_text("{")
    with pytest.raises(MvlmError, match="cannot be loaded"):
        load_run(run)


def test_weights_that_do_not_fill_the_model(run):
    weights = load_file(run / "model.safetensors")
    weights.pop(next(name for name in weights if name.startswith("connector")))
    save_file(weights, run / "model.safetensors", {"format": "pt"})
    with pytest.raises(MvlmError, match="lack 1 tensors, connector"):
        load_run(run)
