"""A risk bound: within so many points of the finest scale, at a stated confidence, at the lowest cost that allows it.

Learn-then-test with a fixed sequence (arXiv 2110.01052): prices are walked from the safest in an order that was fixed
before any row was looked at, on rows that nothing else was fitted on, and the walk ends at the first price that cannot
be shown to keep the risk bound. A walk pays nothing for its many tests. Rows of one picture are not independent, so a
picture is the unit: it counts with the mean loss of its rows.

Letters: g pictures, n rows, K scales, b bets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from export.runtime.errors import MvlmError
from router.policy import Costs, Floats, Ints, choose, costs_of

Bound = Literal["net", "harm"]
# The part of the pictures that is set apart for a risk bound.
CALIBRATION_SHARE = 0.4
PRICES = np.concatenate([[0.0], np.geomspace(1e-3, 2, 60)])
_BETS = np.linspace(0.05, 0.95, 19)
# A walk that had as many rows as its capital needs in the mean would still fail every other time.
_POWER = 1.5


@dataclass(frozen=True)
class Wanted:
    """What is to be bounded: losses against the finest scale, each as 0.01, at one confidence."""

    within: tuple[float, ...]
    confidence: float = 0.9
    bound: Bound = "net"
    by_task: bool = False

    def __post_init__(self) -> None:
        for within in self.within:
            if not 0 < within < 1:
                raise MvlmError(f"--within {within:g} is no loss: give one above 0 and below 100 %, as 1%")
        if not 0.5 <= self.confidence < 1:
            raise MvlmError(f"--confidence {self.confidence:g} bounds nothing: give one from 50 % to below 100 %")


@dataclass(frozen=True)
class RiskBound:
    """How a risk bound ended. `price` is None where it cannot be given, and `rows_needed` then says what it would take.

    `rows_needed` is None as well where no number of rows would do: the router itself loses too much.
    """

    within: float
    confidence: float
    bound: Bound
    task: str | None
    rows: int
    price: float | None
    mean_cost: float | None
    rows_needed: int | None

    def words(self, unit: str) -> str:
        """The risk bound as a sentence."""
        what = f"within {100 * self.within:g} points of the finest at {100 * self.confidence:g} % confidence"
        what = f"{self.task}: {what}" if self.task else what
        if self.price is not None:
            return f"{what}, at a mean of {self.mean_cost:.1f} {unit} (price {self.price:.3g}, {self.rows} rows)"
        if self.rows_needed is None:
            return f"NOT {what}: at every price the router loses more than that on these {self.rows} rows"
        return f"NOT {what} with these {self.rows} rows: about {self.rows_needed:,} would be needed"


def set_apart(groups: NDArray[np.str_], seed: int) -> NDArray[np.bool_]:
    """Which rows a risk bound is tested on: whole pictures, drawn by the seed, (n,)."""
    names = np.unique(groups)
    drawn = np.random.default_rng(seed).permutation(names)[: round(CALIBRATION_SHARE * len(names))]
    return np.isin(groups, drawn)


def risk_bound(
    probability: Floats, strange: NDArray[np.bool_], scores: Floats, groups: NDArray[np.str_],
    cost: Floats | Costs, within: float, wanted: Wanted, task: str | None = None,
) -> RiskBound:  # fmt: skip
    """Walk the prices for a loss: probabilities and scores (n, K) of calibration rows; which are unlike the others."""
    costs = costs_of(cost)
    said = RiskBound(within, wanted.confidence, wanted.bound, task, len(scores), None, None, None)
    for price in PRICES:
        choice = np.where(strange, scores.shape[1] - 1, choose(probability, costs, float(price)))
        losses = loss_of_pictures(choice, scores, groups, wanted.bound)
        if p_value(losses, within, wanted.bound) > 1 - wanted.confidence:
            break
        said = replace(said, price=float(price), mean_cost=float(costs.spent(choice).mean()))
    if said.price is None:
        said = replace(said, rows_needed=_rows_needed(losses, within, wanted, len(scores)))
    return said


def loss_of_pictures(choice: Ints, scores: Floats, groups: NDArray[np.str_], bound: Bound) -> Floats:
    """What each picture loses against the finest scale, in an order that has nothing to do with its content: (g,).

    `net` is the mean loss of its rows, -1..1. `harm` is whether its one row, drawn at random, was made worse: 0 or 1.
    """
    lost = scores[:, -1] - np.take_along_axis(scores, choice[:, None], axis=1)[:, 0]  # (n,)
    _, first, of = np.unique(groups, return_index=True, return_inverse=True)
    shuffled = np.random.default_rng(0).permutation(len(first))
    if bound == "net":
        return (np.bincount(of, lost) / np.bincount(of))[shuffled]
    order = np.random.default_rng(1).permutation(len(lost))
    drawn = order[np.unique(of[order], return_index=True)[1]]
    return (lost[drawn] > 0).astype(float)[shuffled]


def p_value(losses: Floats, within: float, bound: Bound) -> float:
    """How surely the mean loss is below `within`: (g,). Small is sure."""
    if bound == "harm":
        from scipy.stats import binom

        return float(binom.cdf(losses.sum(), len(losses), within))
    return float(np.exp(-max(0.0, _log_capital(losses, within).max())))


def _log_capital(losses: Floats, within: float) -> Floats:
    """The log of what betting on "the mean loss is below `within`" has made after each picture: (g,) -> (g,).

    Capital 1 is spread over fixed bets; where the mean loss is not below, it is a supermartingale, and reaches 1 / d
    with a probability of at most d (Ville; Waudby-Smith and Ramdas, arXiv 2010.09686).
    """
    bets = _BETS / (1 - within)  # no bet can lose more than all of its capital, as a loss is at most 1
    grown = np.log1p(bets * (within - losses[:, None])).cumsum(axis=0)  # (g, b)
    highest = grown.max(axis=1, keepdims=True)
    return highest[:, 0] + np.log(np.exp(grown - highest).mean(axis=1))


def _rows_needed(losses: Floats, within: float, wanted: Wanted, rows: int) -> int | None:
    """About how many rows the safest price would need, if more rows are like these."""
    if wanted.bound == "harm":
        from scipy.stats import binom

        rate = losses.mean()
        sizes = np.unique(np.geomspace(len(losses), 1e6, 400).astype(int))
        enough = sizes[binom.cdf(np.ceil(rate * sizes), sizes, within) <= 1 - wanted.confidence]
        return int(_rounded(enough[0] * rows / len(losses))) if len(enough) else None
    growth = np.log1p(_BETS[:, None] / (1 - within) * (within - losses)).mean(axis=1).max()
    if growth <= 0:
        return None
    pictures = _POWER * (np.log(1 / (1 - wanted.confidence)) + np.log(len(_BETS))) / growth
    return _rounded(max(pictures * rows / len(losses), rows))


def _rounded(rows: float) -> int:
    """Two figures, upwards: it is an estimate."""
    step = 10 ** max(0, int(np.log10(rows)) - 1)
    return int(np.ceil(rows / step) * step)
