"""Candidates -> one, chosen by cross-validation over groups, calibrated, with its prices."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import GroupKFold

from export.runtime.routing.policy import Policy, Seen, is_strange
from router.estimators.averages import Constant
from router.estimators.base import PlattScaling, ScaleEstimator
from router.estimators.candidates import Blend, OnBasis, candidates
from router.estimators.novelty import Familiarity
from router.estimators.reader import Reader, why_not
from router.estimators.reader_shape import Inputs
from router.metrics import Interval, Resamples, gain_samples, interval, regrets
from router.policy import Point, choose, follow, operating_points, price_for_budget
from router.table import Table

from .escalation import Escalation, fit_escalation
from .ood_rule import MOST, OodRule, fit_ood_rule
from .risk_bound import RiskBound, Wanted, risk_bound, set_apart
from .spending import Fits, Spending, spending_of

FOLDS = 3
# Regret is averaged over these prices, from "tokens are nearly free" to "an answer is hardly worth the finest scale".
_REGRET_PRICES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
# The default price may cost this much of the finest scale's score.
DEFAULT_LOSS = 0.01
# The largest share of ordinary questions that may be taken for out of distribution, and be given the finest scale.
LEAST_P_VALUE = 0.0025

READER = "reader"

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Candidate:
    """One estimator, judged out of fold: its margins (n, K), regret and log loss of each group (g,), and its folds."""

    name: str
    estimator: ScaleEstimator
    margins: Floats
    regret: Floats
    log_loss: Floats
    fits: Fits = ()

    def keeps_up_with(self, best: Candidate, what: str) -> bool:
        """Within one standard error of the best, paired by group: what both find hard does not blur the comparison."""
        behind = getattr(self, what) - getattr(best, what)
        return bool(behind.mean() <= behind.std() / len(behind) ** 0.5)


@dataclass(frozen=True)
class Fitted:
    """A router ready to be written: fitted on all fit rows, calibrated on out-of-fold margins.

    `out_of_fold` (n, K) are the probabilities of the rows, each by a fit that did not see the row. The rows `apart`
    (n,) are those that a risk bound was tested on, and nothing was fitted on. `strange` (n,) are out of distribution to
    a fit that did not see them, and `policy` is what ships: both count in `spending`, which says what prices come to.
    """

    name: str
    estimator: ScaleEstimator
    seed: int
    calibration: PlattScaling
    p_value: Familiarity
    ood_rule: OodRule
    candidates: list[Candidate]
    out_of_fold: Floats
    prices: list[Point]
    default_price: float
    gain: Interval
    why: str
    risk_bounds: list[RiskBound]
    escalation: Escalation | None
    apart: NDArray[np.bool_]
    strange: NDArray[np.bool_]
    policy: Policy
    spending: Spending

    @property
    def least_p_value(self) -> float:
        return self.ood_rule.least_p_value

    @property
    def constant(self) -> bool:
        return isinstance(self.estimator, Constant)


def features(table: Table) -> Floats:
    """Features of picture and question side by side, float32, (n, d)."""
    return np.column_stack([table.image, table.question]).astype(np.float32)


def seen_by(estimator: ScaleEstimator, table: Table) -> Any:
    """What an estimator is fitted on and asked about: features, and for a reader the pictures and questions too."""
    if not isinstance(estimator, Reader):
        return features(table)
    assert table.reading is not None  # `contenders` saw to it
    return Inputs(features(table), table.reading)


def contenders(table: Table, seed: int) -> dict[str, ScaleEstimator]:
    """What is fitted side by side on a table: a reader too, where its labels hold pictures."""
    found = candidates(table.sizes, seed)
    # A reader's grids are those of one view, and it does not know tiles.
    overviews = [scale for scale in table.scales if isinstance(scale, int)]
    if why_not(table.reading) or len(overviews) < len(table.scales):
        return found
    return found | {READER: Reader(tuple(overviews), seed=seed)}


def fit_table(
    table: Table, *, seed: int, progress: Callable[[int], None], wanted: Wanted | None = None,
    least_p_value: float = LEAST_P_VALUE, rule_costs: float = MOST,
) -> Fitted:  # fmt: skip
    """Fit on the rows of `table`, without those that a wanted risk bound needs; `progress` is told of every step.

    A `least_p_value` is the largest that is held against p-values, and `rule_costs` what that may cost ordinary rows.
    """
    apart = set_apart(table.groups, seed) if wanted else np.zeros(len(table), bool)
    part = table.take(~apart)
    x, y = features(part), part.scores
    judged = _judge_all(contenders(part, seed), part, progress)
    chosen = _simplest_that_keeps_up(judged)
    # P(right) is not how often the greedy answer is right, and differs from it at each scale.
    calibration = PlattScaling(per_scale=part.probability is not None).fit(chosen.margins, y)
    gain = _gain_out_of_fold(calibration.probability(chosen.margins), part)
    estimator, name = chosen.estimator, chosen.name
    if gain.low <= 0 or isinstance(estimator, Constant):
        estimator, name = Constant(), "constant"
        calibration.slope_, calibration.intercept_ = 1.0, 0.0
        why = f"no candidate beats mixing fixed scales ({gain.points()} points out of fold): the router is constant"
    else:
        why = f"{name}: {gain.points()} points over mixing fixed scales, out of fold and averaged over budgets"
    estimator = clone(estimator).fit(
        seen_by(estimator, part), y if name == "constant" else part.targets, part.tasks
    )  # fmt: skip
    progress(1)
    p_value = Familiarity(part.image.shape[1]).fit(x, part.groups)
    probability = np.empty(table.scores.shape)
    probability[~apart] = calibration.probability(chosen.margins if name != "constant" else estimator.margins(x))
    if apart.any():
        probability[apart] = calibration.probability(estimator.margins(seen_by(estimator, table.take(apart))))
    escalation = _escalation(name, probability, table, wanted)
    policy = Policy(table.cost, table.costs.unit, escalation.rule if escalation and escalation.pays else None)
    strange = np.zeros(len(table), bool)
    plain = Seen(probability, strange.copy(), table.margins, table.costs.of_rows)
    ood_rule = fit_ood_rule(
        policy, plain.take(~apart), p_value.out_of_fold_, y, least_p_value, rows=len(p_value.calibration_),
        most=rule_costs,
    )  # fmt: skip
    strange[~apart] = is_strange(p_value.out_of_fold_, ood_rule.least_p_value)
    strange[apart] = is_strange(p_value.p_value(features(table.take(apart))), ood_rule.least_p_value)
    seen = replace(plain, strange=strange)
    fits = chosen.fits if name != "constant" else ()
    spending = spending_of(seen, apart, seen_by(estimator, part), estimator, fits, calibration)
    points = operating_points(policy, seen, table.scores)
    costs = spending.mean_costs(policy, np.array([point.price for point in points]))
    prices = [replace(point, mean_cost=float(cost)) for point, cost in zip(points, costs, strict=True)]
    risk_bounds = _risk_bounds(probability[apart], strange[apart], table.take(apart), wanted)
    return Fitted(
        name, estimator, seed, calibration, p_value, ood_rule, judged, probability, prices,
        _default_price(prices, table.scores, risk_bounds), gain, why, risk_bounds, escalation, apart, strange, policy,
        spending,
    )  # fmt: skip


def _escalation(name: str, probability: Floats, table: Table, wanted: Wanted | None) -> Escalation | None:
    """A rule for an escalation; none where labels hold no margins, or where a risk bound was made for one look."""
    if wanted or name == "constant" or len(table.scales) < 2 or not np.isfinite(table.margins).all():
        return None
    return fit_escalation(probability, table.margins, table.scores, table.costs, table.groups)


def _risk_bounds(
    probability: Floats, strange: NDArray[np.bool_], apart: Table, wanted: Wanted | None
) -> list[RiskBound]:
    """Each loss that was asked for, of all rows and, where wanted, of each task."""
    if wanted is None:
        return []
    found = []
    for within in wanted.within:
        tasks = [None, *np.unique(apart.tasks).tolist()] if wanted.by_task else [None]
        for task in tasks:
            rows = slice(None) if task is None else apart.tasks == task
            walked = risk_bound(
                probability[rows], strange[rows], apart.scores[rows], apart.groups[rows], apart.costs.take(rows),
                within, wanted, task,
            )  # fmt: skip
            found.append(walked)
    return found


def _simplest_that_keeps_up(judged: list[Candidate]) -> Candidate:
    """The one-standard-error rule, for decisions (regret) and for probabilities (log loss), from the simplest up."""
    leaders = {what: min(judged, key=lambda c: getattr(c, what).mean()) for what in ("regret", "log_loss")}
    keep_up = [c for c in judged if all(c.keeps_up_with(best, what) for what, best in leaders.items())]
    return (keep_up or [leaders["regret"]])[0]


def fit_count(table: Table) -> int:
    """Of how many steps `fit_table` tells."""
    return len(contenders(table, 0)) + 1


def workers() -> int:
    """How many fits run at once: the cores, or what OMP_NUM_THREADS allows. Each uses one thread."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def _judge_all(estimators: dict[str, ScaleEstimator], table: Table, progress: Callable[[int], None]) -> list[Candidate]:
    """Every candidate out of fold. A blend is the mean of its parts, which were fitted on the same folds already."""
    judged: dict[str, Candidate] = {}
    alone = {name: estimator for name, estimator in estimators.items() if not _parts(estimator)}
    # What takes longest begins first: the most flexible stand last.
    alone = dict(reversed(alone.items()))
    with ThreadPoolExecutor(workers()) as pool:
        folded = pool.map(lambda estimator: _folded(estimator, table, FOLDS), alone.values())
        for name, (margins, fits) in zip(alone, folded, strict=True):
            judged[name] = replace(judge(name, estimators[name], margins, table), fits=fits)
            progress(1)
    for name, estimator in estimators.items():
        if name not in judged:
            parts = [judged[part] for part in _parts(estimator)]
            mean = np.mean([part.margins for part in parts], axis=0)
            fits = [
                (same[0][0], [one for _, fitted in same for one in fitted])
                for same in zip(*(part.fits for part in parts), strict=True)
            ]
            judged[name] = replace(judge(name, estimator, mean, table), fits=fits)
            progress(1)
    return [judged[name] for name in estimators]


def _parts(estimator: ScaleEstimator) -> list[str]:
    """The names of the candidates that a blend is made of."""
    head = estimator.head if isinstance(estimator, OnBasis) else estimator
    return list(head.parts) if isinstance(head, Blend) else []


def out_of_fold(estimator: ScaleEstimator, table: Table, folds: int = FOLDS) -> Floats:
    """Margins (n, K) of each row from a fit that saw no row of its group."""
    return _folded(estimator, table, folds)[0]


def _folded(estimator: ScaleEstimator, table: Table, folds: int) -> tuple[Floats, Fits]:
    """Margins (n, K) of each row from a fit that saw no row of its group, and those fits."""
    x, margins, fits = seen_by(estimator, table), np.zeros(table.scores.shape), []
    for seen, held_out in GroupKFold(folds).split(table.groups, groups=table.groups):
        fitted = clone(estimator).fit(x[seen], table.targets[seen], table.tasks[seen])
        margins[held_out] = fitted.margins(x[held_out])
        fits.append((seen, [fitted]))
    return margins, fits


def judge(name: str, estimator: ScaleEstimator, margins: Floats, table: Table) -> Candidate:
    """Regret and log loss of out-of-fold margins (n, K), by group."""
    calibration = PlattScaling(per_scale=table.probability is not None).fit(margins, table.scores)
    probability = calibration.probability(margins)
    lost = [regrets(choose(probability, table.costs, p), table.scores, table.costs, p) for p in _REGRET_PRICES]
    clipped = probability.clip(1e-7, 1 - 1e-7)
    nats = -(table.scores * np.log(clipped) + (1 - table.scores) * np.log(1 - clipped)).mean(axis=1)  # (n,)
    _, group = np.unique(table.groups, return_inverse=True)
    regret, log_loss = (
        np.bincount(group, values) / np.bincount(group) for values in (np.mean(lost, axis=0), nats)
    )  # (g,) each
    return Candidate(name, estimator, margins, regret, log_loss)


def _gain_out_of_fold(probability: Floats, table: Table) -> Interval:
    """Gain over the hull, averaged over budgets between the cheapest and the dearest scale."""
    resamples = Resamples(table.groups)
    budgets = np.geomspace(table.cost[0], table.cost[-1], 7)[1:-1]
    gains = []
    for budget in budgets:
        price = price_for_budget(probability, table.costs, float(budget))
        outcome = follow(choose(probability, table.costs, price), table.scores, table.costs)
        gains.append(gain_samples(outcome, table.scores, table.costs, resamples))
    return interval(np.mean(gains, axis=0))


def _default_price(prices: list[Point], scores: Floats, risk_bounds: list[RiskBound]) -> float:
    """The highest price of the first risk bound that was asked for, kept for every task; 0, the safest, if it is not.

    Without a risk bound, the highest price that costs at most `DEFAULT_LOSS`.
    """
    if risk_bounds:
        return min(p.price or 0.0 for p in risk_bounds if p.within == risk_bounds[0].within)
    finest = float(scores.mean(axis=0)[-1])
    within = [point.price for point in prices if point.score >= finest - DEFAULT_LOSS]
    return max(within, default=0.0)
