"""A router's test rows by task and by kind of answer, what a risk bound came to, what is out of distribution.

Letters: n rows, K scales.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.runtime.routing.policy import Policy, Seen
from router.metrics import Interval, Resamples, interval
from router.policy import Costs, Floats, Outcome, best_mix, costs_of, follow, outcome_of, price_table
from router.table import Table

_FEWEST_ROWS = 30


@dataclass(frozen=True)
class Part:
    """Some of the test rows at the router's default price, beside the finest scale."""

    kind: str
    name: str
    rows: int
    mean_cost: float
    score: float
    finest: float
    difference: Interval


def breakdown(outcome: Outcome, test: Table) -> list[Part]:
    """What came of the rows of each task and of each kind of answer, those of few rows left out."""
    kinds = {"task": test.tasks, "answer": np.array([answer_kind(str(answer)) for answer in test.answers])}
    parts = []
    for kind, names in kinds.items():
        for name in np.unique(names):
            rows = names == name
            if rows.sum() >= _FEWEST_ROWS and name:
                some = test.take(rows)
                part = Outcome(outcome.score[rows], outcome.cost[rows])
                lost = Resamples(some.groups).mean(part.score - some.scores[:, -1])
                finest = float(some.scores[:, -1].mean())
                parts.append(Part(kind, str(name), int(rows.sum()), *part.mean, finest, interval(lost)))
    return parts


def worst(parts: list[Part]) -> Part | None:
    """Where the router loses most against the finest scale."""
    return min(parts, key=lambda part: part.difference.value, default=None)


def answer_kind(answer: str) -> str:
    """yes or no, a number, one word, or several."""
    text = answer.strip().lower()
    if text in ("yes", "no"):
        return "yes or no"
    if re.fullmatch(r"[-+]?[\d.,]+", text):
        return "number"
    return "several words" if " " in text else "one word" if text else ""


@dataclass(frozen=True)
class BoundKept:
    """What was bounded, in words, and what the test rows lost at its price."""

    words: str
    within: float
    loss: Interval | None
    mean_cost: float | None


def bounds_kept(risk_bounds: list[dict[str, Any]], seen: Seen, test: Table) -> list[BoundKept]:
    """Each risk bound beside what came of it, by what is decided by on the test rows. It is a bound of one look."""
    policy = Policy(test.cost, test.costs.unit)
    found = []
    for said in risk_bounds:
        rows = np.ones(len(test), bool) if said["task"] is None else test.tasks == said["task"]
        if said["price"] is None or not rows.any():
            found.append(BoundKept(said["words"], said["within"], None, None))
            continue
        some = test.take(rows)
        outcome = outcome_of(policy.decide(seen.take(rows), said["price"]), some.scores)
        loss = interval(Resamples(some.groups).mean(some.scores[:, -1] - outcome.score))
        found.append(BoundKept(said["words"], said["within"], loss, float(outcome.cost.mean())))
    return found


@dataclass(frozen=True)
class Oracle:
    """The best scale of each row, and the best mean score at any mean cost (a curve of cost and score)."""

    mean_cost: float
    score: float
    curve: list[tuple[float, float]]


def oracle_of(told: Floats, scores: Floats, cost: Floats | Costs) -> Oracle:
    """Choose by `told`, be judged by `scores`, both (n, K). The same scores are the oracle with its luck."""
    costs = costs_of(cost)
    # Of equals the cheapest, which is another scale for another picture where rows have costs of their own.
    best = np.where(told == told.max(axis=1, keepdims=True), costs.matrix, np.inf).argmin(axis=1)
    mean_cost, score = follow(best, scores, costs).mean
    points = price_table(told, scores, costs)
    return Oracle(mean_cost, score, [(point.mean_cost, point.score) for point in points])


def without_luck(test: Table) -> Oracle | None:
    """Chosen on one run and judged on the other samples; None where rows were run once."""
    samples = test.samples.shape[1]
    if samples < 2:
        return None
    told = test.samples
    others = [(told.sum(axis=1) - told[:, r]) / (samples - 1) for r in range(samples)]
    found = [oracle_of(told[:, r], others[r], test.costs) for r in range(samples)]
    costs = np.geomspace(test.cost[0], test.cost[-1], 60)
    curve = np.mean([np.interp(costs, *np.array(sorted(one.curve)).T) for one in found], axis=0)
    mean_cost, score = (float(np.mean([getattr(one, name) for one in found])) for name in ("mean_cost", "score"))
    return Oracle(mean_cost, score, list(zip(costs.tolist(), curve.tolist(), strict=True)))


def share_of(oracle: Oracle, mean_cost: float, score: float, fixed: Floats, cost: Floats) -> float | None:
    """Which part of the oracle's gain over the hull, at the same mean cost, a policy reaches."""
    best = float(np.interp(mean_cost, *np.array(sorted(oracle.curve)).T))
    hull = float(best_mix(cost, fixed, mean_cost))
    return None if best - hull < 1e-6 else (score - hull) / (best - hull)
