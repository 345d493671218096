"""What the tests share: the tiny models and pictures of benchmarks/tiny_models.py, rows, and a recipe of seconds."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.tiny_models import (
    ANSWERS,
    GRID_SIDE,
    QUESTIONS,
    SIZE_PX,
    drawn_picture,
    tiny_model,
    tiny_processor,
)
from mvlm_core.data.pictures import PictureFile
from mvlm_core.data.row import PicturePlace, Row, Turn

__all__ = [
    "ANSWERS", "GRID_SIDE", "QUESTIONS", "SCALES", "SIZE_PX", "SMALL_MODEL", "drawn_picture", "metrics",
    "one_question", "tiny_model", "tiny_processor",
]  # fmt: skip

SCALES = (1, 4, 9, 36, 144)

# Overrides that make the drawn benchmark's recipe one of a few seconds.
SMALL_MODEL = (
    "model.vision.embedding_size=8", "model.vision.hidden_sizes=[8, 16]", "model.vision.depths=[1, 1]",
    "model.text.hidden_size=32", "model.text.intermediate_size=32", "model.text.head_dim=8",
    "model.text.num_hidden_layers=1", "precision=float32", "stages.0.pictures=4", "stages.1.pictures=4",
)  # fmt: skip
_COSTS = ("seconds", "memory_mib", "pictures_per_s", "tokens_per_s")


def metrics(run: Path) -> list[dict]:
    """What every step of a run learned; what it cost is another matter, and differs from run to run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in _COSTS} for line in lines]


def one_question(
    id: str,
    picture: Path,
    question: str,
    answer: str,
    *,
    task: str | None = None,
    group: str = "g",
    split: str = "test",
) -> Row:
    """A row that asks one question about one picture."""
    turn = Turn((PicturePlace(0), question), (answer,))
    return Row(id, (PictureFile(picture),), (turn,), task, group, split)
