"""Every way of choosing at exactly the same budgets, paired: its gain over the hull, and over the lookup by kind.

Two policies are compared at one mean cost or not at all: at each budget a policy mixes the two prices beside it, which
are read off its own decisions on the rows, without their scores. What a budget comes to on rows that its price was not
read from is told beside it.

Letters: n rows, K scales, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from export.runtime.routing.policy import Policy, Seen, priced_at
from router.metrics import Interval, Resamples, gain_samples, interval
from router.policy import Costs, exactly, operating_points, outcome_of, plain
from router.table import Table

Floats = NDArray[np.floating]
LOOKUP = "lookup by task"
_DIGITS = 9


@dataclass(frozen=True)
class Contender:
    """A way of choosing: what it decides by on the fit rows (out of fold, to set prices) and on the test rows.

    `priced` is the table of prices and mean costs that ships, where one does: a budget is then priced as the device
    prices it.
    """

    name: str
    policy: Policy
    fit: Seen
    test: Seen
    priced: Sequence[tuple[float, float]] = ()

    def price_for(self, budget: float) -> float:
        """The price that a budget is given."""
        return priced_at(self.priced, budget) if self.priced else self.policy.price_for(self.fit, budget)

    @classmethod
    def plain(
        cls, name: str, fit: Floats, test: Floats, cost: Floats | Costs, of_test: Costs | None = None
    ) -> Contender:  # fmt: skip
        """Probabilities (n, K) alone: one look, and nothing is out of distribution. Where rows have costs of their own,
        `cost` are those of the fit rows and `of_test` those of the test rows."""
        return cls(name, *plain(fit, cost), plain(test, of_test or cost)[1])

    def of(self, fit: NDArray[np.bool_], test: NDArray[np.bool_]) -> Contender:
        """On some of the rows."""
        return replace(self, fit=self.fit.take(fit), test=self.test.take(test))


@dataclass(frozen=True)
class AtBudget:
    """One policy at one stated budget, which it spends exactly: its score, its gain over the hull, and what it is
    ahead of the lookup, paired. `asked_cost` and `asked_score` are what the price that the fit rows give for the budget
    comes to on the test rows."""

    budget: float
    mean_cost: float
    score: float
    gain: Interval
    ahead: Interval
    asked_cost: float
    asked_score: float


@dataclass(frozen=True)
class Standing:
    """A router or a baseline at every budget, its figures averaged over them, and its curve (mean cost, score)."""

    name: str
    at: list[AtBudget]
    mean_gain: Interval
    mean_ahead: Interval
    curve: list[tuple[float, float]]


def compare(contenders: list[Contender], test: Table, budgets: list[float]) -> list[Standing]:
    """Judge each on the test rows, in the same resamples; one of them is the lookup."""
    resamples = Resamples(test.groups)
    gains = {contender.name: samples(contender, test, budgets, resamples) for contender in contenders}
    return [_standing(contender, gains[contender.name], gains[LOOKUP], test, budgets) for contender in contenders]


def ceiling(lookup: Contender, test: Table, budgets: list[float]) -> list[tuple[float, Interval]]:
    """What one who knows P(right) of every row is ahead of the lookup, both judged by P: no luck, and no router passes
    it. Empty where labels hold no P."""
    if test.probability is None:
        return []
    expected = replace(test, samples=test.probability[:, None])
    knows = Contender.plain("knows P", test.probability, test.probability, test.costs)
    resamples = Resamples(test.groups)
    ours, theirs = (samples(one, expected, budgets, resamples) for one in (knows, lookup))
    return [(budget, interval(ahead)) for budget, ahead in zip(budgets, ours - theirs, strict=True)]


def ood_costs(router: Contender, test: Table, budgets: list[float]) -> list[tuple[float, Interval]]:
    """What giving the finest scale to what is out of distribution costs test rows at exactly each budget, paired; below
    0 where it brings right answers."""
    never = replace(router, test=replace(router.test, strange=np.zeros(len(test), bool)))
    resamples = Resamples(test.groups)
    without, ours = (samples(one, test, budgets, resamples) for one in (never, router))
    return [(budget, interval(lost)) for budget, lost in zip(budgets, without - ours, strict=True)]


def samples(contender: Contender, test: Table, budgets: list[float], resamples: Resamples) -> Floats:
    """Gains over the hull at exactly each budget, under each resample: (budgets, 1 + R).

    What rounding leaves is no gain: a router that is constant mixes the very scales of the hull.
    """
    scores = test.scores.astype(np.float64)
    outcomes = [exactly(contender.policy, contender.test, scores, budget) for budget in budgets]
    gains = np.array([gain_samples(outcome, scores, test.costs, resamples) for outcome in outcomes])
    return gains.round(_DIGITS)


def _standing(contender: Contender, gains: Floats, lookup: Floats, test: Table, budgets: list[float]) -> Standing:
    at = []
    for budget, gain, other in zip(budgets, gains, lookup, strict=True):
        spent = exactly(contender.policy, contender.test, test.scores, budget).mean
        decided = contender.policy.decide(contender.test, contender.price_for(budget))
        asked = outcome_of(decided, test.scores).mean
        at.append(AtBudget(budget, *spent, interval(gain), interval(gain - other), *asked))
    curve = [(p.mean_cost, p.score) for p in operating_points(contender.policy, contender.test, test.scores)]
    return Standing(
        contender.name, at, interval(gains.mean(axis=0)), interval((gains - lookup).mean(axis=0)), curve
    )  # fmt: skip
