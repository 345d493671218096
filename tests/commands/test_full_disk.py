"""A disk that fills: one line says so, and nothing that is left looks whole.

The operating system is told to refuse files beyond a size, which a write meets as it meets a full disk: half-way.
"""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import mvlm_core.cli
from benchmarks.tiny_models import byte_words
from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.run_folder import load_run
from tests.support.checkpoints import stock_llava, write_original
from tests.train.test_recipe import SMALL

ROOT = Path(__file__).parents[2]


def mvlm_with_room(largest_bytes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mvlm_core.cli", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, largest_bytes)),
    )  # fmt: skip


def assert_said(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 2, result.stderr
    assert "error: the disk takes no more" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("verb", ["import", "export-checkpoint"])
def test_nothing_is_left_of_a_model_that_did_not_fit(tmp_path, verb, mvlm):
    words = byte_words()
    folder = write_original(tmp_path / "checkpoint", stock_llava(len(words)))
    words.save_pretrained(folder)
    command = ["import", folder]
    if verb == "export-checkpoint":
        assert mvlm(*command, "--out", tmp_path / "run").exit_code == 0
        command = ["export-checkpoint", tmp_path / "run", "--scale", "144"]
    before = sorted(tmp_path.iterdir())
    weights = (folder / "model.safetensors").stat().st_size
    assert_said(mvlm_with_room(weights // 2, *command, "--out", tmp_path / "out"))
    assert sorted(tmp_path.iterdir()) == before
    assert mvlm(*command, "--out", tmp_path / "out").exit_code == 0


@pytest.mark.slow
def test_a_run_whose_checkpoint_did_not_fit_goes_on(scenes, tmp_path, mvlm):
    config = scenes.parent / "train.yaml"
    steps = [*SMALL, "stages.0.steps=1", "stages.1.steps=2", "stages.1.save_every=1"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert mvlm("train", config, *steps, "--out", whole).exit_code == 0
    weights = (whole / "model.safetensors").stat().st_size
    # There is room for the weights, and none for the optimizer's state, which is written after them.
    assert_said(mvlm_with_room(weights + weights // 2, "train", config, *steps, "--out", run))
    with pytest.raises(MvlmError, match=r"it holds no config\.json and no model\.safetensors"):
        load_run(run)
    assert list(run.rglob("checkpoint-*/model.safetensors"))
    result = mvlm("train", config, *steps, "--out", run, "--resume")
    assert result.exit_code == 0, result.output
    assert "was cut short" in result.output
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_other_errors_are_not_taken_for_a_full_disk(error, full, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(mvlm_core.cli.click.Group, "main", fail)
    with pytest.raises(SystemExit if full else type(error)):
        mvlm_core.cli.main([])
