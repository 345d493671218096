"""A router against everything that it must beat, on rows that nothing was fitted on: the figures of the report.

Letters: n rows, K scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from export.runtime.errors import MvlmError
from export.runtime.routing.policy import Policy, Seen, is_strange
from export.runtime.routing.router_folder import read_router
from export.runtime.routing.router_graph import read_priced
from export.runtime.views.scale import ScaleWord
from router.estimators.base import ScaleEstimator
from router.estimators.candidates import candidates
from router.fit.fit import contenders
from router.fit.write import OUT_OF_FOLD
from router.graph.ask import ask_graph, p_values
from router.metrics import Interval, Reliability, Resamples, interval, ladder, named, reliability
from router.policy import follow, operating_points, outcome_of
from router.table import Table

from .baselines import CascadePoint, baselines, cascade, count
from .breakdown import (
    BoundKept,
    Oracle,
    Part,
    bounds_kept,
    breakdown,
    oracle_of,
    share_of,
    without_luck,
)
from .budgets import LOOKUP, Contender, Standing, ceiling, compare, ood_costs, samples
from .learning import PARTS, Learned, learning_curve

Floats = NDArray[np.floating]
ROUTER = "router"
ESCALATING = "router, escalating"
BUDGETS = (4, 9, 18, 36, 60)
HALF_A_POINT = 0.005
_SURELY = 2.0
# A ladder lower than this, from the coarsest scale to the finest, gives a router nothing to choose.
FLAT = 0.05
# With fewer right answers than this at every scale, nothing can be said of choosing one.
_NOTHING_RIGHT = 0.02
# A kind counts as learned when its finest scale is right this often, or surely better than its commonest answer.
_LEARNED = 0.6
_ABOVE_COMMONEST = 0.1
_FACTS = ("estimator", "seed", "constant", "risk_bounds", "least_p_value")


@dataclass(frozen=True)
class Evaluation:
    """Everything that the report shows."""

    scales: tuple[ScaleWord, ...]
    cost: list[float]
    cost_unit: str
    tile_tokens: float | None
    rows: int
    groups: int
    ladder: dict[str, list[float]]
    steepness: Interval
    policies: list[Standing]
    ceiling: list[tuple[float, Interval]]
    oracle: Oracle
    cross_sample_oracle: Oracle | None
    measures: str
    scored_by: str
    share: float | None
    random_mix: tuple[float, float]
    parts: list[Part]
    strange: float
    risk_bounds: list[BoundKept]
    rows_labelled: int
    half_cost: float
    half: Interval
    out_of_distribution: dict[str, float]
    ood_costs: list[tuple[float, Interval]]
    ood_words: list[str]
    cascade: list[CascadePoint]
    not_learned: list[str]
    picture_tasks: list[str]
    picture_gain: list[tuple[float, Interval]]
    picture_mean: Interval | None
    default_price: float
    default: tuple[float, float]
    chosen: dict[str, list[float]]
    reliability: dict[str, Reliability]
    choices: NDArray[np.int64]
    probability: Floats
    learning: list[Learned]

    @property
    def nothing_right(self) -> bool:
        """Whether the scores tell of the metric, or of a model that learned nothing, rather than of scales."""
        return max(self.ladder["all"]) < _NOTHING_RIGHT

    @property
    def flat(self) -> bool:
        """Whether the scales surely differ by less than is worth a choice."""
        return self.steepness.high < FLAT

    @property
    def undecided(self) -> bool:
        """Whether these rows are too few to say if more tokens help."""
        return not self.flat and self.steepness.low <= 0

    @property
    def tasks(self) -> list[str]:
        """The kinds of questions that the rows name."""
        return [name for name in self.ladder if name != "all"]

    @property
    def shown(self) -> list[Standing]:
        """The policies that mean something here: a lookup by task does not, where rows name none."""
        return [policy for policy in self.policies if self.tasks or policy.name != LOOKUP]

    def policy(self, name: str) -> Standing:
        return next(policy for policy in self.policies if policy.name == name)

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in (
            "scales", "cost", "cost_unit", "tile_tokens", "rows", "groups", "ladder", "measures", "scored_by", "share",
            "random_mix", "strange", "rows_labelled", "out_of_distribution", "ood_words", "not_learned",
            "picture_tasks", "default_price", "default", "chosen",
        )}  # fmt: skip
        return plain | {
            "flat": self.flat,
            "undecided": self.undecided,
            "nothing_right": self.nothing_right,
            "half": asdict(self.half) | {"mean_cost": self.half_cost},
            "oracle": asdict(self.oracle),
            "oracle_without_luck": asdict(self.cross_sample_oracle) if self.cross_sample_oracle else None,
            "cascade": [asdict(point) for point in self.cascade],
            "parts": [asdict(part) for part in self.parts],
            "risk_bounds": [asdict(kept) for kept in self.risk_bounds],
            "steepness": asdict(self.steepness),
            "policies": [asdict(policy) for policy in self.policies],
            "learning": [asdict(one) for one in self.learning],
            "ood_costs": [{"budget": budget, **asdict(lost)} for budget, lost in self.ood_costs],
            "ceiling": [{"budget": budget, **asdict(ahead)} for budget, ahead in self.ceiling],
            "picture_gain": [{"budget": budget, **asdict(gain)} for budget, gain in self.picture_gain],
            "picture_mean": asdict(self.picture_mean) if self.picture_mean else None,
            "reliability": {scale: asdict(r) for scale, r in self.reliability.items()},
        }


def router_of_labels(folder: Path, table: Table, labels: Path) -> dict[str, Any]:
    """router.json, checked to be whole and to have been fitted for the model and scales of a table."""
    hash_of_model = table.facts["model_sha256"]
    facts = read_router(folder, hash_of_model, of=str(labels), facts=_FACTS, files=(OUT_OF_FOLD,)).facts
    if facts["scales"] != list(table.scales):
        raise MvlmError(f"{folder} and {labels} are of other scales: fit the router on these labels")
    return facts


def read_out_of_fold(folder: Path, table: Table) -> Seen:
    """What fits that did not see them said of the fit rows, in the order of the table; prices for budgets are read
    from that.

    Raises `MvlmError` when the router was fitted on any other rows: a test row among them would be judged too well.
    """
    kept = pq.read_table(folder / OUT_OF_FOLD)
    fit = table.fit_rows
    ids, wanted = np.array(kept["id"].to_pylist(), str), fit.ids
    if len(ids) != len(wanted) or set(ids.tolist()) != set(wanted.tolist()):
        raise MvlmError(
            f"{folder} was fitted on {len(ids)} rows, and they are not the {len(wanted)} rows outside the test split of"
            " these labels: fit the router on these labels"
        )
    probability = kept["probability"].combine_chunks().flatten().to_numpy().reshape(len(ids), -1)  # (n, K)
    order = np.empty(len(ids), np.int64)
    order[np.argsort(wanted)] = np.argsort(ids)
    if "out_of_distribution" in kept.column_names:
        strange = np.array(kept["out_of_distribution"].to_pylist(), bool)
    else:  # routers of before kept none, and counted none
        strange = np.zeros(len(ids), bool)
    return Seen(probability[order], strange[order], fit.margins, fit.row_cost)


def evaluate(
    folder: Path, facts: dict[str, Any], table: Table, progress: Callable[[int], None], *, curve: bool = False
) -> Evaluation:
    """Judge the shipped router.onnx on the test rows; `progress` is told of `steps` steps.

    A `curve` fits what ships anew on parts of the labels, to say how many more are worth it.
    """
    fit, test = table.fit_rows, table.test_rows
    routers = shipped(folder, facts, table)
    router = routers[0]
    progress(1)
    others = [
        Contender.plain(b.name, b.fit, b.test, fit.costs, test.costs)
        for b in baselines(_estimator(facts, table), fit, test, progress)
    ]
    budgets = stated_budgets(table)
    policies = compare([*routers, *others], test, budgets)
    progress(1)
    lookup = next(contender for contender in others if contender.name == LOOKUP)
    learned = _learning(facts, fit, test, lookup, budgets, policies, progress) if curve else []
    not_learned, picture_tasks = _picture_tasks(test)
    blind = next(contender for contender in others if contender.name == "question only")
    gains, mean = _picture_gain(router, blind, fit, test, picture_tasks, budgets)
    by_scale = Resamples(test.groups).mean(test.scores)  # (1 + R, K)
    best, cross_sample = oracle_of(test.scores, test.scores, test.costs), without_luck(test)
    cost = test.costs.mean()
    decided = router.policy.decide(router.test, facts["default_price"])
    outcome, choices = outcome_of(decided, test.scores), decided.last
    mixed = np.random.default_rng(0).permutation(choices)
    (spent, score), said = outcome.mean, router.test.probability
    parts, half = breakdown(outcome, test), _half(router, fit, test)
    progress(1)
    return Evaluation(
        scales=test.scales, cost=cost.tolist(), cost_unit=facts["cost_unit"], tile_tokens=facts.get("tile_tokens"),
        rows=len(test),
        groups=len(np.unique(test.groups)), ladder=ladder(test.scores, test.tasks),
        steepness=interval(by_scale[:, -1] - by_scale[:, 0]), policies=policies, ceiling=ceiling(lookup, test, budgets),
        oracle=best, cross_sample_oracle=cross_sample, measures=table.measures, scored_by=table.scored_by,
        share=share_of(cross_sample or best, spent, score, test.scores.mean(axis=0), cost),
        random_mix=follow(mixed, test.scores, test.costs).mean, parts=parts, strange=float(router.test.strange.mean()),
        risk_bounds=bounds_kept(facts["risk_bounds"], router.test, test), rows_labelled=len(fit),
        half_cost=half[0], half=half[1], out_of_distribution=_ood_probes(folder, facts, table),
        ood_costs=ood_costs(router, test, budgets), ood_words=facts.get("out_of_distribution", {}).get("words", []),
        cascade=cascade(fit, test, budgets),
        not_learned=not_learned,
        picture_tasks=picture_tasks, picture_gain=gains, picture_mean=mean, default_price=facts["default_price"],
        default=outcome.mean, chosen=_shares(choices, test),
        reliability={str(m): reliability(said[:, k], test.scores[:, k]) for k, m in enumerate(test.scales)},
        choices=choices, probability=said, learning=learned,
    )  # fmt: skip


def stated_budgets(table: Table) -> list[float]:
    """The mean costs that policies are compared at: `BUDGETS`, or with tiles as many between the ends, evenly spread
    in the logarithm and rounded to two digits."""
    low, high = float(table.cost[0]), float(table.cost[-1])
    if table.row_cost is not None:
        spread = [float(f"{b:.2g}") for b in np.geomspace(low, high, len(BUDGETS) + 2)[1:-1]]
        return [b for b in dict.fromkeys(spread) if low < b < high] or [float(np.sqrt(low * high))]
    return [float(b) for b in BUDGETS if low < b < high] or [float(np.sqrt(low * high))]


def steps(curve: bool, table: Table) -> int:
    """Of how many steps `evaluate` tells."""
    return 3 + count(table) + (len(PARTS) if curve else 0)


def _learning(
    facts: dict[str, Any], fit: Table, test: Table, lookup: Contender, budgets: list[float], policies: list[Standing],
    progress: Callable[[int], None],
) -> list[Learned]:  # fmt: skip
    """The learning curve of what ships; its last point is the router itself."""
    known = contenders(fit, facts["seed"])
    estimator = known.get(facts["estimator"]) if not facts["constant"] else None
    found = learning_curve(estimator or _estimator(facts, fit), fit, test, lookup, budgets, progress)
    router = next(policy for policy in policies if policy.name == ROUTER)
    return [*found, Learned(len(np.unique(fit.groups)), router.mean_ahead)]


def _estimator(facts: dict[str, Any], table: Table) -> ScaleEstimator:
    """The estimator that was chosen. Where the constant router ships the baselines still need one that can learn, and
    where a reader does, one that takes seconds: the most flexible of those that read features."""
    known = candidates(table.sizes, facts["seed"])
    return known.get(facts["estimator"], list(known.values())[-1]) if not facts["constant"] else [*known.values()][-1]


def shipped(folder: Path, facts: dict[str, Any], table: Table) -> list[Contender]:
    """The router as it ships, and where a rule for an escalation was fitted also without it, or with it if it is off.

    Probabilities and what is out of distribution come from router.onnx itself.
    """
    test = table.test_rows
    probability, _, p_value = ask_graph(folder / "router.onnx", test, facts["default_price"])
    seen = Seen(probability, is_strange(p_value, facts["least_p_value"]), test.margins, test.row_cost)
    fit = read_out_of_fold(folder, table)
    escalation, priced = facts.get("escalation"), read_priced(folder / "router.onnx")
    one_look = Policy(table.cost, table.costs.unit)
    if escalation is None:
        return [Contender(ROUTER, one_look, fit, seen, priced)]
    escalating = replace(one_look, rule=escalation["rule"])
    shipped, other, name = (
        (escalating, one_look, "router, one look") if escalation["on"] else (one_look, escalating, ESCALATING)
    )
    return [Contender(ROUTER, shipped, fit, seen, priced), Contender(name, other, fit, seen)]


def _half(router: Contender, fit: Table, test: Table) -> tuple[float, Interval]:
    """What half a point costs on the test rows: mean cost, and the score minus that of the finest, paired.

    The price is read from the fit rows alone, as the default price is: the highest that loses at most half a point
    there. Where that spends more than half of the finest scale's cost, it is one that spends under half, by `_SURELY`
    standard errors of the difference between a mean over the fit's pictures and one over the test's.
    """
    policy, half = router.policy, float(fit.cost[-1]) / 2
    spent = policy.decide(router.fit, policy.price_for(router.fit, half)).cost
    names, picture = np.unique(fit.groups, return_inverse=True)
    by_picture = np.bincount(picture, spent) / np.bincount(picture)  # (g,)
    error = by_picture.std() * (1 / len(names) + 1 / len(np.unique(test.groups))) ** 0.5
    at_half = policy.price_for(router.fit, half - _SURELY * error)
    least = float(fit.scores[:, -1].mean()) - HALF_A_POINT
    points = operating_points(policy, router.fit, fit.scores)
    price = max([at_half, *(point.price for point in points if point.score >= least)])
    outcome = outcome_of(policy.decide(router.test, price), test.scores)
    lost = interval(Resamples(test.groups).mean(outcome.score - test.scores[:, -1]))
    return float(outcome.cost.mean()), lost


def _ood_probes(folder: Path, facts: dict[str, Any], table: Table) -> dict[str, float]:
    """The share of pictures of each other kind that is sent to the finest scale, where labels hold such pictures."""
    found = {}
    for kind, (image, question) in table.ood_probes.items():
        p_value = p_values(folder / "router.onnx", image, question, table.cost)
        found[kind] = float(is_strange(p_value, facts["least_p_value"]).mean())
    return found


def _picture_tasks(test: Table) -> tuple[list[str], list[str]]:
    """Kinds that were not learned, and the kinds that the data set says the picture decides, without those.

    A kind is taken as not learned when even its finest scale is right less often than `_LEARNED` and not surely more
    often, by `_ABOVE_COMMONEST`, than always giving the kind's commonest answer would be. Such a kind may be upside
    down over the scales and give a router a false gain.
    """
    not_learned = []
    for task in named(test.tasks):
        rows = test.take(test.tasks == task)
        finest = rows.scores[:, -1]
        if finest.mean() >= _LEARNED:
            continue
        commonest = np.unique(rows.answers.astype(str), return_counts=True)[1].max() / len(rows)
        above = interval(Resamples(rows.groups).mean(finest) - commonest)
        if above.low <= _ABOVE_COMMONEST:
            not_learned.append(str(task))
    known = test.facts.get("tasks", {})
    picture = [
        str(t) for t in np.unique(test.tasks) if known.get(t, {}).get("sight") == "picture" and t not in not_learned
    ]
    return not_learned, picture


def _picture_gain(
    router: Contender, blind: Contender, fit: Table, test: Table, tasks: list[str], budgets: list[float]
) -> tuple[list[tuple[float, Interval]], Interval | None]:
    """Where the picture decides: the router over the question alone, both at exactly the budget there, paired."""
    if not tasks:
        return [], None
    keep_fit, keep = np.isin(fit.tasks, tasks), np.isin(test.tasks, tasks)
    some = test.take(keep)
    resamples = Resamples(some.groups)
    ours, theirs = (samples(one.of(keep_fit, keep), some, budgets, resamples) for one in (router, blind))
    gains = [(budget, interval(gain)) for budget, gain in zip(budgets, ours - theirs, strict=True)]
    return gains, interval((ours - theirs).mean(axis=0))


def _shares(choices: NDArray[np.int64], test: Table) -> dict[str, list[float]]:
    """Which scales are chosen at the default price, as shares: for all rows and for each kind."""
    k = len(test.scales)
    shares = {"all": (np.bincount(choices, minlength=k) / len(choices)).tolist()}
    for task in named(test.tasks):
        some = choices[test.tasks == task]
        shares[str(task)] = (np.bincount(some, minlength=k) / len(some)).tolist()
    return shares
