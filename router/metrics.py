"""What a router is worth: gains over fixed scales at equal cost with paired intervals, calibration, the oracle.

Letters: n rows, g groups (pictures), K scales, R resamples. Rows of one picture are not independent, so every interval
is a bootstrap over groups, paired: both sides of a difference are taken from the same resample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .policy import Costs, Outcome, best_mix, costs_of, follow

Floats = NDArray[np.floating]
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def points(self) -> str:
        """As percentage points, for people."""
        # A zero keeps its sign: "-0.0" as a lower end says that the interval holds zero.
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


class Resamples:
    """R resamples of the groups of some rows, and means of rows under each."""

    def __init__(self, groups: NDArray[np.str_], seed: int = 0) -> None:
        self._names, self._group_of_row = np.unique(groups, return_inverse=True)
        g = len(self._names)
        random = np.random.default_rng(seed)
        counts = random.multinomial(g, np.full(g, 1 / g), size=RESAMPLES)  # (R, g)
        self._weights = np.vstack([np.ones(g), counts])  # (1 + R, g): the rows as they are, then the resamples
        self._rows = self._weights @ self._sums(np.ones(len(groups)))  # (1 + R,)

    def mean(self, values: Floats) -> Floats:
        """Mean over rows under each resample, the first being the rows as they are: (n,) or (n, K) -> (1 + R, ·)."""
        sums = self._weights @ self._sums(values)
        return (sums.T / self._rows).T

    def _sums(self, values: Floats) -> Floats:
        """Sum over the rows of each group: (n, ·) -> (g, ·)."""
        sums = np.zeros((len(self._names), *values.shape[1:]))
        np.add.at(sums, self._group_of_row, values)
        return sums


def interval(samples: Floats) -> Interval:
    """The first sample with the central 95 % of the others: (1 + R,) -> Interval."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(samples[1:], [tail, 100 - tail])
    return Interval(float(samples[0]), float(low), float(high))


def gain_samples(outcome: Outcome, scores: Floats, cost: Floats | Costs, resamples: Resamples) -> Floats:
    """Score minus what mixing two fixed scales reaches at the same mean cost, under each resample: (1 + R,).

    The hull of the fixed scales is drawn anew each time, and what they cost where rows differ in that.
    """
    score, spent, fixed = resamples.mean(outcome.score), resamples.mean(outcome.cost), resamples.mean(scores)
    costs = costs_of(cost)
    return score - best_mix(costs.usual if costs.of_rows is None else resamples.mean(costs.of_rows), fixed, spent)


def regrets(choice: NDArray[np.integer], scores: Floats, cost: Floats | Costs, price: float) -> Floats:
    """Utility that each row lost against knowing its scores, (n,); the price is paid in normalised cost."""
    costs = costs_of(cost)
    utility = scores - price * (costs.matrix / costs.unit)  # (n, K)
    taken = np.take_along_axis(utility, choice[:, None], axis=1)[:, 0]  # (n,)
    return utility.max(axis=1) - taken


def oracle(scores: Floats, cost: Floats | Costs) -> Outcome:
    """The cheapest scale that scores best, row by row. Part of it is luck: no router can reach it."""
    return follow(scores.argmax(axis=1), scores, cost)


def ladder(scores: Floats, tasks: NDArray[np.str_]) -> dict[str, list[float]]:
    """Mean score at each scale, for all rows and for each task."""
    steps = {"all": scores.mean(axis=0).tolist()}
    return steps | {task: scores[tasks == task].mean(axis=0).tolist() for task in named(tasks)}


def named(tasks: NDArray[np.str_]) -> list[str]:
    """The kinds of some rows, each once; a row that names none is of no kind."""
    return [str(task) for task in np.unique(tasks) if task]


@dataclass(frozen=True)
class Reliability:
    """Of bins of equally many rows: mean probability, mean score; and the expected calibration error."""

    probability: list[float]
    score: list[float]
    error: float


def reliability(probability: Floats, score: Floats, bins: int = 15) -> Reliability:
    """Do probabilities mean what they say? (n,), (n,). Rows of which the same is said are in one bin."""
    values, which = np.unique(probability, return_inverse=True)
    bin_of = np.searchsorted(np.sort(probability), values) * bins // len(probability)  # by how many are below
    parts = [np.flatnonzero(bin_of[which] == one) for one in np.unique(bin_of)]
    said = [float(probability[part].mean()) for part in parts]
    was = [float(score[part].mean()) for part in parts]
    sizes = np.array([len(part) for part in parts]) / len(probability)
    return Reliability(said, was, float((sizes * np.abs(np.subtract(said, was))).sum()))
