"""Scales that show every labelled row alike: where no picture has more than four tiles, 16@16 is 16@4."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from export.runtime.views.scale import Scale

LabelTable = TypeVar("LabelTable")  # router.labels.Table, which is read by way of this


def told_apart(labelled: LabelTable) -> LabelTable:
    """The same with one of such scales, the first. What each row pays at two of them is the same for every row."""
    table: Any = labelled
    if table.row_cost is None or len(table.cost) != len(table.scales):
        return labelled
    other = (np.diff(table.row_cost, axis=1) != 0).any(axis=0)  # (K - 1,), from the scale before
    kept = np.flatnonzero(np.append(True, other))
    if len(kept) == len(table.scales):
        return labelled
    found: LabelTable = replace(
        table,
        samples=table.samples[:, :, kept], margins=table.margins[:, kept], predictions=table.predictions[:, kept],
        scales=tuple(table.scales[k] for k in kept), cost=table.cost[kept], row_cost=table.row_cost[:, kept],
        probability=None if table.probability is None else table.probability[:, kept],
    )  # fmt: skip
    return found


def left_out(table: Any) -> list[str]:
    """A line for each scale that `told_apart` left out of a `router.labels.Table`."""
    words = [Scale.parse(scale).word for scale in table.facts["scales"]]
    return [
        f"  {word} shows every labelled row as a scale before it does, and is left out"
        for word in words
        if word not in table.scales
    ]
