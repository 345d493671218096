"""What a policy brings: outcomes, operating points, and budgets met exactly. The decision itself is the runtime's.

Letters: n rows, K scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.runtime.routing.policy import Decided, Policy, Seen

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

# Prices worth trying: above 1 no answer is worth the dearest scale, and at 0 tokens are free.
_PRICES = np.concatenate([[0.0], np.geomspace(1e-4, 20, 400)])


@dataclass(frozen=True)
class Costs:
    """What scales cost: usually (K,), from the cheapest up, and each row (n, K), where rows differ in that.

    A price is for `unit`, what the dearest scale usually costs, whichever rows it is applied to.
    """

    usual: Floats
    of_rows: Floats | None = None

    @property
    def unit(self) -> float:
        return float(np.max(self.usual))

    @property
    def matrix(self) -> Floats:
        """(n, K), or (1, K) where rows do not differ."""
        return np.asarray(self.usual)[None] if self.of_rows is None else self.of_rows

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer] | slice) -> Costs:
        """Those of some rows; what is usual stays."""
        return self if self.of_rows is None else Costs(self.usual, self.of_rows[rows])

    def spent(self, choice: Ints) -> Floats:
        """Of one scale for each row: (n,)."""
        if self.of_rows is None:
            return np.asarray(self.usual)[choice]
        return self.of_rows[np.arange(len(choice)), choice]

    def mean(self) -> Floats:
        """Of the scales on these rows: (K,)."""
        return np.asarray(self.usual) if self.of_rows is None else self.of_rows.mean(axis=0)


def costs_of(cost: Floats | Costs) -> Costs:
    """Costs that are the same for all rows, (K,), as `Costs`."""
    return cost if isinstance(cost, Costs) else Costs(np.asarray(cost))


def choose(probability: Floats, cost: Floats | Costs, price: float) -> Ints:
    """argmax of probability - price * cost / unit cost: (n, K) -> (n,). Ties go to the cheaper scale."""
    costs = costs_of(cost)
    utility = probability - price * (costs.matrix / costs.unit)
    return utility.argmax(axis=1)


@dataclass(frozen=True)
class Outcome:
    """What a policy does on some rows: a score and a cost for each, (n,)."""

    score: Floats
    cost: Floats

    @property
    def mean(self) -> tuple[float, float]:
        """Mean cost and mean score."""
        return float(self.cost.mean()), float(self.score.mean())


def follow(choice: Ints, scores: Floats, cost: Floats | Costs) -> Outcome:
    """The outcome of choosing one scale for each row."""
    return Outcome(np.take_along_axis(scores, choice[:, None], axis=1)[:, 0], costs_of(cost).spent(choice))


@dataclass(frozen=True)
class Point:
    """One operating point: what a price costs and brings on the rows it was read off."""

    price: float
    mean_cost: float
    score: float


def plain(probability: Floats, cost: Floats | Costs) -> tuple[Policy, Seen]:
    """Choosing by utility alone: nothing is out of distribution, and there is one look. (n, K)."""
    costs = costs_of(cost)
    seen = Seen(probability, np.zeros(len(probability), bool), cost=costs.of_rows)
    return Policy(costs.usual, costs.unit), seen


def outcome_of(decided: Decided, scores: Floats) -> Outcome:
    """The outcome of decisions on rows whose scores (n, K) are known."""
    return Outcome(np.take_along_axis(scores, decided.last[:, None], axis=1)[:, 0], decided.cost)


def operating_points(policy: Policy, seen: Seen, scores: Floats, prices: Floats = _PRICES) -> list[Point]:
    """Every distinct operating point over a grid of prices, from the cheapest price up."""
    points: list[Point] = []
    for price in prices:
        mean_cost, score = outcome_of(policy.decide(seen, float(price)), scores).mean
        if not points or mean_cost != points[-1].mean_cost:
            points.append(Point(float(price), mean_cost, score))
    return points


def price_table(probability: Floats, scores: Floats, cost: Floats | Costs) -> list[Point]:
    """The operating points of choosing by utility alone: (n, K), (n, K)."""
    return operating_points(*plain(probability, cost), scores)


def price_for_budget(probability: Floats, cost: Floats | Costs, budget: float) -> float:
    """The smallest price whose mean cost is within the budget (mean cost falls as the price grows)."""
    policy, seen = plain(probability, cost)
    return policy.price_for(seen, budget)


def exactly(policy: Policy, seen: Seen, scores: Floats, budget: float) -> Outcome:
    """What a policy does at exactly a mean cost, by mixing the two prices beside it; read off its own decisions alone.

    A row's score and cost are those expected of the mix. A policy that spends less than the budget at price 0 spends
    that.
    """
    over, under = (outcome_of(policy.decide(seen, price), scores) for price in policy.prices_beside(seen, budget))
    gap = over.cost.mean() - under.cost.mean()
    share = 0.0 if gap <= 0 else float(np.clip((budget - under.cost.mean()) / gap, 0, 1))
    mixed = ((1 - share) * a + share * b for a, b in ((under.score, over.score), (under.cost, over.cost)))
    return Outcome(*mixed)


def best_mix(cost: Floats, score: Floats, budget: Floats | float) -> Floats:
    """The best score of a mix of two fixed scales whose mean cost is at most `budget`: (..., K) twice, (...) -> (...).

    Over all budgets this is the hull of the fixed scales: no mix of three is better. Below the cheapest scale it is the
    score of the cheapest, which stands first; the others may stand in any order.
    """
    cost, score = np.asarray(cost, np.float64), np.asarray(score, np.float64)
    best = score[..., 0]
    for dear in range(cost.shape[-1]):
        for cheap in range(cost.shape[-1]):
            gap = cost[..., dear] - cost[..., cheap]
            share = np.clip((budget - cost[..., cheap]) / np.where(gap > 0, gap, 1), 0, 1)
            mixed = (1 - share) * score[..., cheap] + share * score[..., dear]
            possible = (gap > 0) & (budget >= cost[..., cheap])
            best = np.where(possible, np.maximum(best, mixed), best)
    return best
