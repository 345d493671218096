"""The one decision: probabilities, price and what else counts -> scales, for any number of rows.

The device decides a question by it, and so do the price of a budget, a fit and a report, so that what is reported is
the policy that ships: what is out of distribution takes the finest scale, and an unsure first token an escalation.

Letters: n rows, k scales, coarse to fine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Rule = Mapping[str, Sequence[float]]

NO_LOOK = -1
# Above this price no answer is worth more than the cheapest scale.
DEAREST_PRICE = 1e3
_TINY = 1e-6
_HALVINGS = 60
_PRICES = np.concatenate([[0.0], np.geomspace(1e-4, 20, 200)])
# Mean costs within this ratio lie on a slope, and others on a step, that only one of the two prices is safe on.
_CLOSE = 1.05


@dataclass(frozen=True)
class Seen:
    """What is decided by: P(right) (n, k), which rows are out of distribution (n,), by how much the first token of each
    answer leads (n, k), which only a rule for an escalation reads, and what the scales cost each row (n, k), where rows
    differ in that: a wide picture has fewer tiles."""

    probability: Floats
    strange: NDArray[np.bool_]
    margin: Floats | None = None
    cost: Floats | None = None

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Seen:
        """Some of the rows."""
        margin, cost = (None if some is None else some[rows] for some in (self.margin, self.cost))
        return Seen(self.probability[rows], self.strange[rows], margin, cost)


@dataclass(frozen=True)
class Decided:
    """The scale that is looked at first, the one that answers, as indices, and what both cost together: (n,) each."""

    first: Ints
    last: Ints
    cost: Floats


@dataclass(frozen=True)
class Policy:
    """How scales are chosen: their usual costs (k,), what a price is for, and a rule for an escalation, if any.

    Where rows have costs of their own, these count. An escalation costs its scale in full, or only what it adds where
    the model keeps its cache.
    """

    cost: Floats
    unit_cost: float
    rule: Rule | None = None
    keeps_cache: bool = False

    def decide(
        self, seen: Seen, price: float, *, cap: float = math.inf, least_probability: float = 0.0
    ) -> Decided:  # fmt: skip
        """Every row at one price. A cap bounds what one row may cost, both looks together."""
        first, costs = self.first(seen, price, cap=cap, least_probability=least_probability), self._costs(seen)
        rows = np.arange(len(first))
        spent = costs[rows, first]
        if self.rule is None or seen.margin is None:
            return Decided(first, first, spent)
        relative = costs / self.unit_cost
        margin = seen.margin[rows, first]
        second = escalations(
            self.rule, margin, seen.probability, first, relative, price, keeps_cache=self.keeps_cache,
            cap=None if math.isinf(cap) else cap / self.unit_cost,
        )  # fmt: skip
        again = (second != NO_LOOK) & ~seen.strange
        last = np.where(again, second, first)
        extra = costs[rows, last] - (spent if self.keeps_cache else 0.0)
        return Decided(first, last, spent + np.where(again, extra, 0.0))

    def first(self, seen: Seen, price: float, *, cap: float = math.inf, least_probability: float = 0.0) -> Ints:
        """The scale that is looked at first: the best utility among what the cap allows and is likely enough; the
        likeliest where nothing is; the finest allowed for what is out of distribution. Ties go to the cheaper. Where a
        cap allows none, since choosing itself has to be paid too, the cheapest is."""
        costs = self._costs(seen)  # (n, k)
        allowed = costs <= np.maximum(cap, costs.min(axis=1, keepdims=True))  # (n, k)
        utility = seen.probability - price * (costs / self.unit_cost)
        good = allowed & (seen.probability >= least_probability)  # (n, k)
        best = np.where(good, utility, -np.inf)
        likeliest = np.where(allowed, seen.probability, -np.inf)
        merit = np.where(good.any(axis=1, keepdims=True), best, likeliest)
        finest = allowed.shape[1] - 1 - allowed[:, ::-1].argmax(axis=1)  # (n,)
        return np.where(seen.strange, finest, merit.argmax(axis=1)).astype(np.int64)

    def _costs(self, seen: Seen) -> NDArray[np.float64]:
        """What the scales cost each row, (n, k)."""
        costs = np.asarray(self.cost if seen.cost is None else seen.cost, np.float64)
        return np.broadcast_to(costs, np.shape(seen.probability))

    def mean_cost(self, seen: Seen, price: float) -> float:
        """What a row costs in the mean at a price."""
        return float(self.decide(seen, price).cost.mean())

    def worth(self, seen: Seen, price: float, *, cap: float = math.inf) -> float:
        """The probability of a right answer that a row may expect at a price, less what it pays for it: the mean."""
        decided = self.decide(seen, price, cap=cap)
        rows = np.arange(len(decided.first))
        right = np.asarray(seen.probability, np.float64)[rows, decided.last]
        if self.rule is not None and seen.margin is not None:
            now = seen.probability[rows, decided.first]
            read = escalation_features(seen.margin[rows, decided.first], now, seen.probability[rows, decided.last])
            again = decided.last != decided.first
            right = np.where(again, sigmoid(read @ np.asarray(self.rule["finer"])), right)
        return float((right - price * decided.cost / self.unit_cost).mean())

    def price_for(self, seen: Seen, budget: float) -> float:
        """The smallest price whose mean cost is within the budget; a mean cost falls as its price grows."""
        return self.prices_beside(seen, budget)[1]

    def price_losing(self, seen: Seen, loss: float) -> float:
        """The highest price that is expected to lose at most `loss` of what always the finest scale gets right."""
        rows, finest = np.arange(len(seen.probability)), float(seen.probability[:, -1].mean())
        for price in reversed(_PRICES.tolist()):
            if seen.probability[rows, self.decide(seen, price).last].mean() >= finest - loss:
                return float(price)
        return 0.0

    def prices_beside(self, seen: Seen, budget: float) -> tuple[float, float]:
        """The two prices beside a budget, next to each other: one that spends more, if any does, and one within it."""
        low, high = 0.0, DEAREST_PRICE
        if self.mean_cost(seen, low) <= budget:
            return low, low
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.mean_cost(seen, middle) <= budget else (middle, high)
        return low, high


def is_strange(p_value: Floats | float, least: float) -> NDArray[np.bool_]:
    """Which p-values say "out of distribution", in single precision on the device and everywhere else."""
    return np.asarray(p_value, np.float32) < np.float32(least)


def priced_at(priced: Sequence[tuple[float, float]], budget: float) -> float:
    """The price of a budget from a table of prices and the mean costs that they come to, from the lowest price up.

    Between two prices whose costs are close it is in between, so that all of the budget is spent.
    """
    at = next((i for i, (_, mean_cost) in enumerate(priced) if mean_cost <= budget), None)
    if at is None:
        return DEAREST_PRICE
    price, within = priced[at]
    if at == 0:
        return price
    lower, over = priced[at - 1]
    share = (budget - within) / (over - within)
    return price - share * (price - lower) if over < _CLOSE * within else price


def escalation_features(margin: Floats, now: Floats, finer: Floats) -> NDArray[np.float64]:
    """What the rule of an escalation reads: first-token margin, P at this scale, P at finer ones (f,) -> (f, 4)."""
    finer = np.atleast_1d(finer)
    columns = [np.ones(finer.shape), logit(margin), logit(now), logit(finer)]
    return np.stack([np.broadcast_to(column, finer.shape) for column in columns], axis=-1)


def escalations(
    rule: Rule, margin: Floats, probability: Floats, at: NDArray[np.integer], relative_cost: Floats, price: float,
    *, keeps_cache: bool = False, cap: float | None = None,
) -> Ints:  # fmt: skip
    """Which finer scale is worth an escalation, `NO_LOOK` for none: margin (n,), P (n, k), first choice (n,) -> (n,).

    Costs (k,) or (n, k) and cap are in parts of the unit cost; a cap counts both looks.
    """
    n, k = probability.shape
    rows, relative = np.arange(n), np.broadcast_to(np.asarray(relative_cost, np.float64), (n, k))
    best, chosen = np.zeros(n), np.full(n, NO_LOOK)
    now, paid = probability[rows, at], relative[rows, at]
    for dear in range(1, k):
        seen = escalation_features(margin, now, probability[:, dear])  # (n, 4)
        gain = sigmoid(seen @ np.asarray(rule["finer"])) - sigmoid(seen @ np.asarray(rule["now"]))
        extra = relative[:, dear] - (paid if keeps_cache else 0.0)
        worth = np.where(at < dear, gain - price * extra, -np.inf)
        if cap is not None:
            worth = np.where(paid + extra <= cap, worth, -np.inf)
        chosen, best = np.where(worth > best, dear, chosen), np.maximum(worth, best)
    return chosen.astype(np.int64)


def logit(p: Floats | float) -> NDArray[np.float64]:
    """Log odds, kept finite."""
    p = np.clip(np.asarray(p, np.float64), _TINY, 1 - _TINY)
    return np.log(p / (1 - p))


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of log odds."""
    return 1 / (1 + np.exp(-x))


def interpolate(probability: Floats, scales: Sequence[float], wanted: Sequence[float]) -> NDArray[np.float64]:
    """Probabilities at other scales, by the log odds over log m, and never beyond the ends: (n, K) -> (n, k)."""
    known, at = (np.log(np.asarray(some, np.float64)) for some in (scales, wanted))
    share = np.array([np.interp(at, known, one) for one in np.eye(len(known))])  # (K, k)
    return sigmoid(logit(probability) @ share)
