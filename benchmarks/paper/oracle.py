"""M3's oracle (section 4): the coarsest scale that answers rightly, with its luck and without, and a router's share.

Letters: n rows, s seeds, K scales.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.stats import Asked, Labelled
from export.runtime.features import FEATURE_VERSION, image_feature_names, question_feature_names
from router.fit.fit import fit_table
from router.policy import best_mix, choose, follow
from router.report.breakdown import Oracle, oracle_of, share_of, without_luck
from router.report.granularity import granularity
from router.table import Table

Floats = NDArray[np.floating]
_PRICES = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class OracleFigures:
    """What the oracle reaches, beside the best fixed scale; means over seeds.

    Attributes:
        mean_tokens, score: as M3 has it; rows that nothing answers count at the coarsest scale.
        cross_sample_tokens, cross_sample_score: chosen on one seed and judged on the others; None from one seed.
        fixed_scale, fixed_score: of the best fixed scale.
        mix: what mixing fixed scales reaches at the cross_sample oracle's tokens.
    """

    mean_tokens: float
    score: float
    cross_sample_tokens: float | None
    cross_sample_score: float | None
    fixed_scale: int
    fixed_score: float
    mix: float | None


def seeds_table(asked: list[Asked]) -> Table:
    """The test rows of one cell under several seeds, which stand as runs (n, s, K)."""
    first, runs = asked[0], np.stack([one.scores for one in asked], axis=1).astype(np.float32)
    n, k = len(first.tasks), len(first.cell.scales)
    nothing, empty = np.zeros((n, 0), np.float32), np.full(n, "", object)
    return Table(
        np.arange(n).astype(str), first.groups, first.tasks, np.full(n, "test"), runs, nothing, nothing,
        np.full((n, k), np.nan), np.full((n, k), "", object), empty, first.cell.scales,
        np.array(first.cell.scales, float), {},
    )  # fmt: skip


def oracle_figures(asked: list[Asked]) -> OracleFigures:
    """Of one cell under several seeds: the same rows, the same recipe."""
    table = seeds_table(asked)
    own = [oracle_of(one.scores, one.scores, table.cost) for one in asked]
    cross_sample: Oracle | None = without_luck(table)
    fixed = table.scores.mean(axis=0)
    best = int(fixed.argmax())
    return OracleFigures(
        float(np.mean([one.mean_cost for one in own])), float(np.mean([one.score for one in own])),
        cross_sample and cross_sample.mean_cost, cross_sample and cross_sample.score,
        table.scales[best], float(fixed[best]),
        cross_sample and float(best_mix(table.cost, fixed, cross_sample.mean_cost)),
    )  # fmt: skip


def cross_sample_choices(asked: list[Asked]) -> list[NDArray[np.integer]]:
    """For each seed the scale of each row, (n,), that the other seeds found best: its own luck has no say."""
    scores = np.stack([one.scores for one in asked])  # (s, n, K)
    return [np.delete(scores, seed, axis=0).mean(axis=0).argmax(axis=1) for seed in range(len(asked))]


def mix_of(scores: Floats, choice: NDArray[np.integer], cost: Floats) -> float:
    """What mixing two fixed scales reaches at the mean cost of a choice."""
    return float(best_mix(cost, scores.mean(axis=0), cost[choice].mean()))


def needs(asked: list[Asked]) -> list[dict[str, Any]]:
    """Which granularity each kind of question needs: a row is right where most seeds are."""
    kinds = [asdict(kind) for kind in granularity(seeds_table(asked))]
    return [kind | {"mean_need": None if math.isnan(kind["mean_need"]) else kind["mean_need"]} for kind in kinds]


def router_share(asked: list[Asked], labelled: list[Labelled]) -> list[dict[str, Any]]:
    """A router fitted on each seed's fit rows, at several prices, and its share of the oracle's gain over a mix.

    The oracle without luck is told by the other seeds and judged, as the router is, by this one.
    """
    found = []
    for one, rows in zip(asked, labelled, strict=True):
        table = _labelled_table(one, rows)
        test = table.test_rows
        fitted = fit_table(table.fit_rows, seed=one.cell.seed, progress=lambda fits: None)
        probability = fitted.calibration.probability(fitted.estimator.margins(np.hstack([test.image, test.question])))
        others = [other.scores for other in asked if other is not one]
        oracles = {"share": oracle_of(test.scores, test.scores, test.cost)}
        if others:
            oracles["share_without_luck"] = oracle_of(np.mean(others, axis=0), test.scores, test.cost)
        fixed, points = test.scores.mean(axis=0), []
        for price in _PRICES:
            spent, score = follow(choose(probability, test.cost, price), test.scores, test.cost).mean
            shares = {name: share_of(oracle, spent, score, fixed, test.cost) for name, oracle in oracles.items()}
            mix = float(best_mix(test.cost, fixed, spent))
            points.append({"price": price, "mean_tokens": spent, "score": score, "mix": mix, **shares})
        found.append({"seed": one.cell.seed, "estimator": fitted.name, "at": points})
    return found


def _labelled_table(asked: Asked, rows: Labelled) -> Table:
    facts = {
        "cost_unit": "tokens", "feature_version": FEATURE_VERSION, "model_sha256": asked.cell.key,
        "feature_names": {"image": image_feature_names(), "question": question_feature_names()},
    }  # fmt: skip
    bare = seeds_table([replace(asked, scores=rows.scores, tasks=rows.tasks, groups=rows.groups)])
    return replace(
        bare, ids=rows.ids, splits=rows.splits, image=rows.image, question=rows.question, margins=rows.margins,
        facts=facts,
    )  # fmt: skip
