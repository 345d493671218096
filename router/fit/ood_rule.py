"""How small a p-value is out of distribution: at most the share that was asked for, and no more than it is worth.

What is out of distribution takes the finest scale. An ordinary row that is taken for such gains little there, and one
such row pays for what many cheap answers wanted. So the share of ordinary rows that was asked for is a bound. Of it and
of smaller shares, halved until only what is stranger than every row of the fit is left, the largest is taken that at
exactly each budget costs at most `MOST`, out of fold.

Letters: n rows, K scales.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.routing.policy import Policy, Seen, is_strange
from router.policy import Floats, exactly

# What the rule may cost ordinary rows at a budget, in right answers.
MOST = 0.0005
# Of few rows no p-value is so small; then it is those that are stranger than every one of them.
_STRANGER_THAN_ALL = 1.5
_HALVINGS = 3


@dataclass(frozen=True)
class OodRule:
    """What is held against a p-value, and what that costs.

    Attributes:
        asked: the share of ordinary rows that may be taken for out of distribution.
        least_p_value: a row with a smaller p-value is. 0 turns the rule off.
        ordinary: the share of the fit's rows that it takes for such, out of fold.
        budgets: mean costs at which it was weighed.
        costs: what it costs at each budget, in right answers, below 0 where it brings some.
        costs_as_asked: the same of the whole share that was asked for.
    """

    asked: float
    least_p_value: float
    ordinary: float = 0.0
    budgets: tuple[float, ...] = ()
    costs: tuple[float, ...] = ()
    costs_as_asked: tuple[float, ...] = ()

    def to_json(self, unit: str) -> dict[str, Any]:
        """As router.json holds it."""
        facts = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return facts | {"words": self.words(unit)}

    def words(self, unit: str) -> list[str]:
        """For a terminal and the page."""
        if not self.asked:
            return []
        smaller = max(self.costs_as_asked, default=0.0) > MOST
        told = [
            f"out of distribution: {100 * self.ordinary:.2g} % of ordinary questions take the finest scale, of the"
            f" {100 * self.asked:.2g} % that may; at {_list(self.budgets)} {unit} that costs {_points(self.costs)}"
            " points, out of fold"
        ]
        return [f"{told[0]} (all that may would cost {_points(self.costs_as_asked)})"] if smaller else told


def fit_ood_rule(
    policy: Policy, seen: Seen, p_value: Floats, scores: Floats, asked: float, *, rows: int, most: float = MOST
) -> OodRule:
    """The rule for ordinary rows whose p-values (n,) and probabilities are out of fold, and whose scores (n, K) are
    known; what `seen` says of what is strange is not read. The smallest p-value is 1 / (1 + `rows`)."""
    if asked <= 0:
        return OodRule(asked, 0.0)
    budgets = tuple(np.geomspace(np.min(policy.cost), np.max(policy.cost), 7)[1:-1].tolist())
    never = replace(seen, strange=np.zeros(len(p_value), bool))
    without = [exactly(policy, never, scores, budget).score.mean() for budget in budgets]

    def costs(strange: NDArray[np.bool_]) -> tuple[float, ...]:
        if not strange.any():
            return (0.0,) * len(budgets)
        marked = replace(seen, strange=strange)
        return tuple(
            float(before - exactly(policy, marked, scores, budget).score.mean())
            for before, budget in zip(without, budgets, strict=True)
        )

    first: tuple[float, ...] = ()
    for least in shares(asked, rows):
        strange = is_strange(p_value, least)
        found = costs(strange)
        first = first or found
        if max(found) <= most:
            break
    return OodRule(asked, least, float(strange.mean()), budgets, found, first)


def shares(asked: float, rows: int) -> list[float]:
    """What may be held against p-values that are ranks among so many rows, from what was asked for down to what only
    a row that is stranger than all of them is below."""
    least = _STRANGER_THAN_ALL / (1 + rows)
    halved = [max(asked / 2**i, least) for i in range(_HALVINGS + 1)]
    return list(dict.fromkeys([*halved, least]))


def _points(costs: tuple[float, ...]) -> str:
    return "/".join(f"{100 * cost:.2f}" for cost in costs)


def _list(budgets: tuple[float, ...]) -> str:
    return "/".join(f"{budget:.3g}" for budget in budgets)
