"""Scales that show every labelled row alike: where no picture has more than four tiles, 16@16 is 16@4."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.runtime.views.scale import Scale

from .table import Table


def told_apart(table: Table) -> Table:
    """The same with one of such scales, the first. What each row pays at two of them is the same for every row."""
    if table.row_cost is None or len(table.cost) != len(table.scales):
        return table
    other = (np.diff(table.row_cost, axis=1) != 0).any(axis=0)  # (K - 1,), from the scale before
    kept = np.flatnonzero(np.append(True, other))
    if len(kept) == len(table.scales):
        return table
    return replace(
        table,
        samples=table.samples[:, :, kept], margins=table.margins[:, kept], predictions=table.predictions[:, kept],
        scales=tuple(table.scales[k] for k in kept), cost=table.cost[kept], row_cost=table.row_cost[:, kept],
        probability=None if table.probability is None else table.probability[:, kept],
    )  # fmt: skip


def left_out(table: Table) -> list[str]:
    """A line for each scale that `told_apart` left out."""
    words = [Scale.parse(scale).word for scale in table.facts["scales"]]
    return [
        f"  {word} shows every labelled row as a scale before it does, and is left out"
        for word in words
        if word not in table.scales
    ]
