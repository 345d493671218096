"""After a cheap answer, whether to look again: a rule from the first token's margin and two probabilities.

The gain of an escalation is P(the finer answer is right) - P(this one is), each a logistic regression on the margin and
what the router said of the two scales (deferral compares the two errors, arXiv 2307.02764). The router's probabilities
are out of fold, and the rule is judged out of fold as well: where it does not pay, it is off.

Letters: n rows, g groups, K scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from export.runtime.routing.policy import Policy, Seen, escalation_features
from router.metrics import Interval, Resamples, interval
from router.policy import Costs, Floats, Outcome, choose, costs_of, follow, outcome_of, price_for_budget

Rule = dict[str, list[float]]
_FOLDS = 2
_BUDGETS = 5
_RIDGE = 1e-3


@dataclass(frozen=True)
class Escalation:
    """A rule, and what an escalation brings out of fold over routing alone at equal mean cost."""

    rule: Rule
    gain: Interval

    @property
    def pays(self) -> bool:
        return self.gain.low > 0


def fit_escalation(
    probability: Floats, margin: Floats, scores: Floats, cost: Floats | Costs, groups: NDArray[np.str_]
) -> Escalation:
    """From probabilities out of fold, margins of the first token and scores, all (n, K)."""
    costs = costs_of(cost)
    rules: list[tuple[NDArray[np.integer], Rule]] = []
    folds = GroupKFold(min(_FOLDS, len(np.unique(groups))))
    for seen, held_out in folds.split(probability, groups=groups):
        rules.append((held_out, fit_rule(probability[seen], margin[seen], scores[seen])))
    resamples = Resamples(groups)
    differences = []
    for budget in np.geomspace(costs.usual[0], costs.usual[-1], _BUDGETS + 2)[1:-1]:
        alone = follow(choose(probability, costs, price_for_budget(probability, costs, budget)), scores, costs)
        # The same mean cost for both, so that their scores can be compared.
        price = _price(rules, probability, margin, scores, costs, float(alone.cost.mean()))
        looked = _looked(rules, probability, margin, scores, costs, price)
        differences.append(resamples.mean(looked.score) - resamples.mean(alone.score))
    return Escalation(fit_rule(probability, margin, scores), interval(np.mean(differences, axis=0)))


def fit_rule(probability: Floats, margin: Floats, scores: Floats) -> Rule:
    """Weights of the two regressions over every pair of a scale and a finer one."""
    k = scores.shape[1]
    seen, now, finer = [], [], []
    for cheap in range(k - 1):
        for dear in range(cheap + 1, k):
            seen.append(escalation_features(margin[:, cheap], probability[:, cheap], probability[:, dear]))
            now.append(scores[:, cheap])
            finer.append(scores[:, dear])
    x = np.concatenate(seen)  # (pairs * n, 4)
    return {name: _logistic(x, np.concatenate(y)).tolist() for name, y in (("now", now), ("finer", finer))}


def look_twice(
    rule: Rule, probability: Floats, margin: Floats, scores: Floats, cost: Floats | Costs, price: float
) -> Outcome:
    """Route at a price, and look again where the rule says so; both looks are paid in full."""
    costs = costs_of(cost)
    policy = Policy(costs.usual, costs.unit, rule)
    seen = Seen(probability, np.zeros(len(probability), bool), margin, costs.of_rows)
    return outcome_of(policy.decide(seen, price), scores)


def _looked(
    rules: list[tuple[NDArray[np.integer], Rule]], probability: Floats, margin: Floats, scores: Floats, costs: Costs,
    price: float,
) -> Outcome:  # fmt: skip
    """Each part of the rows by the rule that did not see it."""
    score, spent = np.empty(len(scores)), np.empty(len(scores))
    for rows, rule in rules:
        part = look_twice(rule, probability[rows], margin[rows], scores[rows], costs.take(rows), price)
        score[rows], spent[rows] = part.score, part.cost
    return Outcome(score, spent)


def _price(
    rules: list[tuple[NDArray[np.integer], Rule]], probability: Floats, margin: Floats, scores: Floats, costs: Costs,
    budget: float,
) -> float:  # fmt: skip
    low, high = 0.0, 1e3
    for _ in range(30):
        # Prices spread over many powers of ten.
        middle = (low + high) / 2 if low == 0 and high < 1e-3 else np.sqrt(max(low, 1e-4) * high)
        within = _looked(rules, probability, margin, scores, costs, middle).cost.mean() <= budget
        low, high = (low, middle) if within else (middle, high)
    return float(high)


def _logistic(x: Floats, y: Floats) -> Floats:
    """Weights of a logistic regression on graded scores, by Newton's method: (n, d), (n,) -> (d,)."""
    w = np.zeros(x.shape[1])
    for _ in range(25):
        p = 1 / (1 + np.exp(-(x @ w)))
        slope = x.T @ (p - y) / len(x) + _RIDGE * w
        curve = (x * (p * (1 - p))[:, None]).T @ x / len(x) + _RIDGE * np.eye(len(w))
        step = np.linalg.solve(curve, slope)
        w = w - step / max(1.0, np.abs(step).max())
    return w
