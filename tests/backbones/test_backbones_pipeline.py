"""Loaded parts through the verbs: trained, stopped and gone on with, started from, exported."""

from __future__ import annotations

import shutil

import pytest
import yaml

from mvlm_core.train.config import read_config
from tests.support.backbones import write_language_model, write_tower

STAGE = {"name": "answers", "show": [1, 144], "steps": 2, "pictures": 4, "lr": 1e-3, "save_every": 1}


@pytest.mark.slow
def test_loaded_parts_go_the_whole_way(scenes, tmp_path, mvlm):
    write_tower(tmp_path / "parts" / "clip", "clip")
    write_language_model(tmp_path / "parts" / "qwen2", "qwen2")
    told = {
        "rows": str(scenes), "precision": "float32", "scales": [1, 144], "stages": [STAGE],
        "keep_checkpoints": True,
        "model": {"vision": {"name": "parts/clip"}, "text": {"name": "parts/qwen2"}},
    }  # fmt: skip
    config, run, cut, other = (tmp_path / name for name in ("told.yaml", "run", "cut", "other"))
    config.write_text(yaml.safe_dump(told))

    def done(*arguments) -> str:
        result = mvlm(*arguments)
        assert result.exit_code == 0, result.output
        return result.output

    said = done("train", config, "--out", run)
    assert f"vision tower: from {tmp_path / 'parts' / 'clip'}" in said
    assert "connector (pool): from nothing, seed 0" in said
    resolved = read_config(run / "train.yaml").model
    assert resolved.grid_side == 12
    assert resolved.vision == {"name": str(tmp_path / "parts" / "clip")}
    assert yaml.safe_load((run / "train.yaml").read_text())["model"]["vision"] == {"name": "../parts/clip"}

    shutil.copytree(run, cut)
    (cut / "model.safetensors").unlink()
    shutil.rmtree(cut / "checkpoints" / "0-answers" / "checkpoint-2")
    done("train", config, "--out", cut, "--resume")
    assert (cut / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()

    model = f"model={{start: {run}, connector: query, num_queries: 144, num_heads: 2}}"
    said = done("train", config, model, "--out", other)
    assert f"vision tower and language model: from {run}" in said
    assert "connector (query): from nothing, seed 0" in said
    # <image> has no row in either word table; the engines must do without, and the verb proves that they answer alike.
    done("export", other, "--rows", scenes, "--scales", "1,144", "--no-router", "--out", tmp_path / "bundle")
