"""What labelling at five scales costs beside the finest alone, and beside a pass for each scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.record import Record, Told, seconds_of
from benchmarks.train.label_sweep import Pictures
from benchmarks.train.step import SCALES, build

_NEW_TOKENS = 4


def run(record: Record, told: Told) -> None:
    """Sweep pictures of noise in bf16, at ever more pictures together."""
    size = "tiny" if told.rehearse else "0.5B"
    model, processor = build(size, told.device, start_there=True)
    built = model.to(torch.bfloat16 if told.device == "cuda" else torch.float32), processor
    for pictures in (2,) if told.rehearse else (8, 32, 64):
        record.attempt(
            f"{size} {pictures} pictures",
            lambda pictures=pictures: swept(Pictures(size, pictures, _NEW_TOKENS, built), pictures),
        )


def swept(shown: Pictures, pictures: int) -> dict[str, Any]:
    """Pictures a second, each with its questions at every scale that is named."""
    ways: dict[str, Callable[[], Any]] = {
        "all scales, one encoding": lambda: shown.sweep(SCALES),
        "the finest alone": lambda: shown.sweep(SCALES[-1:]),
        "a pass for each scale": lambda: [shown.sweep((scale,)) for scale in SCALES],
    }
    seconds = {name: seconds_of(way, rounds=3) for name, way in ways.items()}
    tokens = {name: shown.tokens(scales) for name, scales in (("all", SCALES), ("finest", SCALES[-1:]))}
    return {
        "questions": len(shown.after[0]), "new_tokens": _NEW_TOKENS, "seconds": seconds, "tokens": tokens,
        "pictures_per_s": {name: pictures / taken for name, taken in seconds.items()},
        "over_the_finest": seconds["all scales, one encoding"] / seconds["the finest alone"],
    }  # fmt: skip
