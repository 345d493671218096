"""What a sweep is of: a run, rows and scales, and all else that decides what its labels are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.runtime.features import FEATURE_VERSION
from export.runtime.label_columns import LABELS
from export.runtime.views.scale import ScaleWord
from mvlm_core.checkpoints.run_folder import Precision, model_sha256
from mvlm_core.data.reading import rows_sha256


@dataclass(frozen=True)
class Sweep:
    """What is labelled: the rows of some splits, at some scales, by one model.

    The first of `samples` answers greedily, as a device does; further ones are drawn at temperature 1. `metrics` are
    those of rows that name none, see `metrics_of`. Without `max_new_tokens` answers may be as long as the longest that
    a row is to be answered by, and half as long again. With `patches` a router can be fitted that reads the pictures.
    With `max_rows` a sample of the rows is labelled, see `sampled`. Where a row has several pictures, one after the
    other is shown at each scale, and the others at the scale `beside`: left out, it is what the run shows by default.
    """

    run: Path
    rows: Path
    scales: tuple[ScaleWord, ...]
    splits: tuple[str, ...]
    samples: int = 1
    max_new_tokens: int | None = None
    metrics: tuple[str, ...] = ()
    pictures_per_part: int = 32
    device: str = "cpu"
    precision: Precision = "float32"
    patches: bool = True
    max_rows: int | None = None
    beside: ScaleWord | None = None
    pictures_sha256: str | None = None  # of what the pictures hold, once the rows are read

    def key(self) -> dict[str, Any]:
        """What a part already written must have been made from to be taken over."""
        return {
            "model_sha256": model_sha256(self.run), "rows_sha256": rows_sha256(self.rows),
            "scales": list(self.scales), "splits": list(self.splits), "samples": self.samples,
            "feature_version": FEATURE_VERSION,
            "max_new_tokens": self.max_new_tokens, "metrics": list(self.metrics),
            "pictures_per_part": self.pictures_per_part, "precision": self.precision, "patches": self.patches,
            "columns": list(LABELS), "max_rows": self.max_rows, "beside": self.beside,
            "pictures_sha256": self.pictures_sha256,
        }  # fmt: skip
