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


def choose(probability: Floats, cost: Floats, price: float) -> Ints:
    """argmax of probability - price * cost / max(cost): (n, K), (K,) -> (n,). Ties go to the cheaper scale."""
    utility = probability - price * (np.asarray(cost) / np.max(cost))
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


def follow(choice: Ints, scores: Floats, cost: Floats) -> Outcome:
    """The outcome of choosing one scale for each row."""
    return Outcome(np.take_along_axis(scores, choice[:, None], axis=1)[:, 0], np.asarray(cost)[choice])


@dataclass(frozen=True)
class Point:
    """One operating point: what a price costs and brings on the rows it was read off."""

    price: float
    mean_cost: float
    score: float


def plain(probability: Floats, cost: Floats) -> tuple[Policy, Seen]:
    """Choosing by utility alone: nothing is out of distribution, and there is one look. (n, K), (K,)."""
    return Policy(np.asarray(cost), float(np.max(cost))), Seen(probability, np.zeros(len(probability), bool))


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


def price_table(probability: Floats, scores: Floats, cost: Floats) -> list[Point]:
    """The operating points of choosing by utility alone: (n, K), (n, K), (K,)."""
    return operating_points(*plain(probability, cost), scores)


def price_for_budget(probability: Floats, cost: Floats, budget: float) -> float:
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
    """The best score of a mix of two fixed scales whose mean cost is at most `budget`: (K,), (..., K), (...) -> (...).

    Over all budgets this is the hull of the fixed scales: no mix of three is better. Below the cheapest scale it is the
    score of the cheapest. Costs ascend.
    """
    cost, score = np.asarray(cost, np.float64), np.asarray(score, np.float64)
    best = score[..., 0]
    for dear in range(1, len(cost)):
        for cheap in range(dear):
            share = np.clip((budget - cost[cheap]) / (cost[dear] - cost[cheap]), 0, 1)
            mixed = (1 - share) * score[..., cheap] + share * score[..., dear]
            best = np.where(budget >= cost[cheap], np.maximum(best, mixed), best)
    return best
