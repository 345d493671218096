"""A run folder is loaded whole, or refused in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from export.runtime import MvlmError
from export.runtime.artefact import sha256_file
from export.runtime.errors import CheckFailed
from mvlm_core.checkpoints.run_folder import (
    load_run,
    model_sha256,
    read_run_facts,
    weight_files,
    write_run_facts,
)
from tests.support.bundles import pool_bundle

CONNECTOR = "connector.mlp.0.weight"


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


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda w: w.pop(CONNECTOR), f"in order: 1; train it again\n  {CONNECTOR} is missing"),
        (
            lambda w: w.update(spare=w.pop(CONNECTOR)),
            f"in order: 2; .*\n  {CONNECTOR} is missing\n  spare is left over",
        ),
        (lambda w: w.update({CONNECTOR: torch.zeros(2, 3)}), rf"{CONNECTOR} has shape \(2, 3\) instead of"),
        (lambda w: w[CONNECTOR].view(-1)[3].fill_(float("nan")), f"{CONNECTOR} holds NaN or infinite values"),
    ],
)
def test_weights_that_are_not_the_models(run, harm, message):
    weights = load_file(run / "model.safetensors")
    harm(weights)
    save_file(weights, run / "model.safetensors", {"format": "pt"})
    with pytest.raises(MvlmError, match=message):
        load_run(run)


def test_weights_cut_short(run):
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(MvlmError, match="cannot be loaded"):
        load_run(run)


def test_a_run_in_shards(run, tmp_path):
    whole, _ = load_run(run)
    shards = shutil.copytree(run, tmp_path / "shards", ignore=shutil.ignore_patterns("model.safetensors"))
    whole.save_pretrained(shards, max_shard_size="40KB")
    files = weight_files(shards)
    assert len(files) > 2
    model, _ = load_run(shards)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    before = model_sha256(shards)
    assert before == model_sha256(shards)
    changed = load_file(files[1])
    changed[next(iter(changed))].view(-1)[0] += 1
    save_file(changed, files[1], {"format": "pt"})
    assert model_sha256(shards) != before
    files[1].unlink()
    with pytest.raises(MvlmError, match=rf"lacks 1 of {len(files) - 1} shards: get {files[1].name}"):
        load_run(shards)


def test_precision_and_device_by_name(run):
    model, _ = load_run(run, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for device in ("cuda:99", "gpu"):
        with pytest.raises(MvlmError, match=f"the device {device} is not there"):
            load_run(run, device=device)


def test_a_run_whose_weights_are_not_those_that_were_written(run):
    written = model_sha256(run)
    write_run_facts(run, rows_sha256="abc")
    assert read_run_facts(run)["rows_sha256"] == "abc"
    assert model_sha256(run) == written
    weights = load_file(run / "model.safetensors")
    weights[CONNECTOR].zero_()
    save_file(weights, run / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckFailed, match=r"other weights than were written \(model.safetensors\)"):
        model_sha256(run)
    (run / "run.json").unlink()
    assert model_sha256(run) == sha256_file(run / "model.safetensors")
