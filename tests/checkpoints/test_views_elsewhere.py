"""Where models of views are not done yet, they are refused by name: nothing goes wrong in silence."""

from __future__ import annotations

import pytest

from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.export_llava import require_expressible
from mvlm_core.checkpoints.import_checkpoint import import_checkpoint
from mvlm_core.checkpoints.run_folder import run_config
from mvlm_core.evaluation.run_answerer import RunAnswerer
from tests.support.families import make


@pytest.fixture(scope="module", params=["smolvlm", "llava_next"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "run").mkdir()
    checkpoint = make(request.param, folder / "checkpoint")
    import_checkpoint(checkpoint, folder / "run", vision_tower=None, num_heads=16, bar=lambda *_: lambda _: None)
    return folder / "run"


def test_the_benchmarks(run):
    with pytest.raises(MvlmError, match="mvlm benchmark shows whole pictures without marks"):
        RunAnswerer.load(run, 4, None, "cpu", "float32")


def test_a_plain_llava(run):
    with pytest.raises(MvlmError, match="a plain LLaVA has one view and a projector of two layers"):
        require_expressible(run_config(run), 16)
