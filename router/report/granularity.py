"""M3's question about a data set (arXiv 2405.17430, section 4): which granularity do its rows need?

A row needs the first scale from which on it is right at every finer one as well. Rows that are right only here and
there are unstable: what they are right at is luck, or more tokens hurt. Letters: n rows, K scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.runtime.views.scale import ScaleWord
from router.policy import Floats
from router.table import Table

# A mean score of at least this counts as right; with one run and whole scores that is the score itself.
_RIGHT = 0.5


@dataclass(frozen=True)
class Needs:
    """Rows of one kind: shares by the scale that they need, then those that never are right, and unstable ones.

    `mean_need` is the mean of needed tokens (with tiles, of needed costs) over rows that have a need; `rise` is by how
    much the finest scale is right more often than the coarsest, and `flat_from` the coarsest scale within a point of
    the best.
    """

    name: str
    rows: int
    first_right: list[float]
    stable_from: list[float]
    never: float
    unstable: float
    mean_need: float
    rise: float
    flat_from: ScaleWord


def granularity(table: Table) -> list[Needs]:
    """All rows, then those of each task."""
    tasks = [str(task) for task in np.unique(table.tasks) if task]
    everything = _needs("all", table.scores, table)
    return [everything, *(_needs(task, table.scores[table.tasks == task], table) for task in tasks)]


def needs_of_rows(scores: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each row the first scale that is right, and the first from which on all are; K where none is: (n,), (n,)."""
    right = scores >= _RIGHT  # (n, K)
    k = right.shape[1]
    first = np.where(right.any(axis=1), right.argmax(axis=1), k)
    stable = k - np.cumprod(right[:, ::-1], axis=1).sum(axis=1)
    return first, stable


def _needs(name: str, scores: Floats, table: Table) -> Needs:
    first, stable = needs_of_rows(scores)
    k, n = len(table.scales), len(scores)
    ladder = scores.mean(axis=0)
    has_need = stable < k
    return Needs(
        name, n,
        first_right=(np.bincount(first, minlength=k + 1)[:k] / n).tolist(),
        stable_from=(np.bincount(stable, minlength=k + 1)[:k] / n).tolist(),
        never=float((first == k).mean()),
        unstable=float(((first < k) & (first != stable)).mean()),
        mean_need=float(np.asarray(table.sizes)[stable[has_need]].mean()) if has_need.any() else float("nan"),
        rise=float(ladder[-1] - ladder[0]),
        flat_from=table.scales[int(np.argmax(ladder >= ladder.max() - 0.01))],
    )  # fmt: skip


def lines(found: list[Needs], scales: tuple[ScaleWord, ...], measures: str) -> list[str]:
    """The table for a terminal."""
    wide = max(len(needs.name) for needs in found)
    head = "".join(f"{m:>8}" for m in scales)
    out = [
        f"share of rows (%) by the scale from which on they are {measures} at every finer one",
        f"  {'':<{wide}}{'rows':>8}{head}{'never':>8}{'unstable':>10}{'need':>8}{'rise':>8}{'flat from':>11}",
    ]
    for needs in found:
        shares = "".join(f"{100 * share:8.1f}" for share in needs.stable_from)
        out.append(
            f"  {needs.name:<{wide}}{needs.rows:>8}{shares}{100 * needs.never:8.1f}{100 * needs.unstable:10.1f}"
            f"{needs.mean_need:8.1f}{100 * needs.rise:8.1f}{needs.flat_from:>11}"
        )
    return [
        *out,
        "need: mean tokens of rows that have a need; rise: points from the coarsest scale to the finest; flat from:"
        " the coarsest scale within a point of the best",
    ]
