"""What lmms-eval finds under the entry point `lmms_eval.models`. Importing this imports nothing of it."""

from __future__ import annotations

from typing import Any

MODEL, ENTRY_POINTS = "mvlm", "lmms_eval.models"
_CLASSES = "mvlm_core.evaluation.lmms_model"


def manifest() -> Any:
    """Called by lmms-eval when it starts. Its chat form knows no likelihood tasks (0.7.3), so the simple one is offered
    beside it, for `--force_simple`.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL, f"{_CLASSES}.MvlmByDocument", f"{_CLASSES}.Mvlm")
