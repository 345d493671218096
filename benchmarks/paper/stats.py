"""Differences between cells and how sure they are: by seed, and by picture.

Letters: s seeds, n test rows, K scales.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.paper.cells import Cell
from benchmarks.paper.train import CELL, LABELS, SCORES
from benchmarks.paper.world import FLAT_KINDS, STEEP_KINDS
from export.runtime.artefact import read_artefact
from router.metrics import CONFIDENCE, Interval, Resamples, interval

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Asked:
    """The test rows of one cell: what was right, (n, K)."""

    cell: Cell
    facts: dict[str, Any]
    scores: Floats
    tasks: NDArray[np.str_]
    groups: NDArray[np.str_]
    predictions: NDArray[np.str_]
    answers: NDArray[np.str_]

    def at(self, scale: int) -> Floats:
        """Scores at one scale, (n,)."""
        return self.scores[:, self.cell.scales.index(scale)]

    def on(self, scales: tuple[int, ...]) -> Asked:
        """The same at some of its scales."""
        columns = np.stack([self.at(m) for m in scales], axis=1)  # (n, K)
        return replace(self, cell=replace(self.cell, scales=scales), scores=columns)

    def rows_of(self, kind: str) -> NDArray[np.bool_]:
        """The rows of one kind of question; of `all`, and of the kinds that are `flat` or `steep`."""
        several = {"flat": FLAT_KINDS, "steep": STEEP_KINDS}
        return np.ones(len(self.tasks), bool) if kind == "all" else np.isin(self.tasks, several.get(kind, (kind,)))


@dataclass(frozen=True)
class Labelled:
    """Rows outside the test split as well, with what a router may see of them."""

    ids: NDArray[np.str_]
    groups: NDArray[np.str_]
    tasks: NDArray[np.str_]
    splits: NDArray[np.str_]
    scores: Floats
    margins: Floats
    image: Floats
    question: Floats


def read_asked(folder: Path, cell: Cell) -> Asked:
    """The test rows of a finished cell. Raises `MvlmError` when `folder` holds none."""
    facts = read_artefact(folder, Path(CELL).stem)
    stored = np.load(folder / SCORES, allow_pickle=False)
    test = stored["split"] == "test"
    names = {"tasks": "task", "groups": "group", "predictions": "predictions", "answers": "answer"}
    columns = {ours: stored[theirs][test] for ours, theirs in names.items()}
    at = np.searchsorted(stored["scales"], cell.scales)
    columns["predictions"] = columns["predictions"][:, at]
    return Asked(cell, facts, stored["scores"][test][:, at].astype(np.float64), **columns)


def read_labelled(folder: Path, scales: tuple[int, ...]) -> Labelled:
    """All rows of a finished cell that was labelled, at some of its scales."""
    stored, seen = (np.load(folder / name, allow_pickle=False) for name in (SCORES, LABELS))
    names = (stored[name] for name in ("id", "group", "task", "split"))
    at = np.searchsorted(stored["scales"], scales)
    return Labelled(*names, stored["scores"][:, at], seen["margins"][:, at], seen["image"], seen["question"])


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % intervals: over seeds (Student's t; None from one seed), and by picture (bootstrap).

    By picture, the seeds stay as they are; over seeds, the pictures do.
    """

    value: float
    by_seed: tuple[float, float] | None
    by_picture: tuple[float, float]
    seeds: int

    @property
    def low(self) -> float:
        """The lower end of both intervals."""
        return min(self.by_picture[0], self.by_seed[0] if self.by_seed else self.by_picture[0])

    @property
    def high(self) -> float:
        return max(self.by_picture[1], self.by_seed[1] if self.by_seed else self.by_picture[1])

    def points(self) -> str:
        """As percentage points: value, then the wider interval."""
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def estimate(per_seed: list[Floats], groups: NDArray[np.str_]) -> Estimate:
    """The mean over seeds and rows of what each seed says of each row: s times (n,)."""
    means = np.array([rows.mean() for rows in per_seed])
    picture: Interval = interval(Resamples(groups).mean(np.mean(per_seed, axis=0)))
    return Estimate(float(means.mean()), t_interval(means), (picture.low, picture.high), len(means))


def t_interval(values: Floats) -> tuple[float, float] | None:
    """The mean's 95 % interval by Student's t; None of one value."""
    if len(values) < 2:
        return None
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return float(values.mean()) - half, float(values.mean()) + half
