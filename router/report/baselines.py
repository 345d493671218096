"""What a router must beat: the same estimator with something taken away, and a table of the kinds of question.

Each baseline is fitted on the fit rows, takes its prices there, and is judged on the test rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from export.runtime.features import SIZE_FEATURES
from export.runtime.views.scale import ScaleWord
from router.estimators.averages import Neighbours, shrunk_means
from router.estimators.base import PlattScaling, ScaleEstimator
from router.estimators.candidates import OnBasis
from router.fit.fit import out_of_fold, seen_by, workers
from router.table import Table

Floats = NDArray[np.floating]
# How many rows of all kinds a kind's own mean is mixed with, so that a rare kind does not overtrust a few rows.
_SHRINK_ROWS = 20
_SIZES = 8


@dataclass(frozen=True)
class Baseline:
    """Probabilities (n, K) on the fit rows (out of fold, to set prices) and on the test rows."""

    name: str
    fit: Floats
    test: Floats


def baselines(
    estimator: ScaleEstimator, fit: Table, test: Table, progress: Callable[[int], None]
) -> Iterator[Baseline]:
    """The baselines, in their order; `progress` is told of each."""
    yield Baseline("lookup by task", *_lookup(fit, test))
    progress(1)
    if knows_sizes(fit):
        yield Baseline("picture size", *_by_size(fit, test))
        progress(1)
    # The match is computed from the picture as well: a question alone has its length and its bag of words.
    words = np.array([not name.startswith("match") for name in fit.facts["feature_names"]["question"]])
    seen_fit, seen_test = (replace(t, question=np.zeros_like(t.question)) for t in (fit, test))
    refits: dict[str, tuple[ScaleEstimator, Table, Table]] = {
        "question only": (estimator, _blind(fit, words), _blind(test, words)),
        "image only": (estimator, seen_fit, seen_test),
        "shuffled labels": (estimator, _shuffled(fit), test),
        "nearest neighbours": (OnBasis(Neighbours()), fit, test),
    }
    with ThreadPoolExecutor(workers()) as pool:
        for baseline in pool.map(lambda name: _refitted(name, *refits[name]), refits):
            yield baseline
            progress(1)


def count(table: Table) -> int:
    """Of how many baselines `baselines` tells."""
    return 5 + knows_sizes(table)


def knows_sizes(table: Table) -> bool:
    """Whether the features of a table say how large its pictures are."""
    return set(SIZE_FEATURES) <= set(table.facts["feature_names"]["image"])


def _refitted(name: str, estimator: ScaleEstimator, fit: Table, test: Table) -> Baseline:
    margins = out_of_fold(estimator, fit, folds=2)
    calibration = PlattScaling(per_scale=fit.probability is not None).fit(margins, fit.scores)
    whole = clone(estimator).fit(seen_by(estimator, fit), fit.targets, fit.tasks)
    said = whole.margins(seen_by(estimator, test))
    return Baseline(name, calibration.probability(margins), calibration.probability(said))


def _shuffled(table: Table) -> Table:
    """Labels of other rows: whatever this gains is a leak."""
    order = np.random.default_rng(0).permutation(len(table))
    probability = None if table.probability is None else table.probability[order]
    return replace(table, samples=table.samples[order], probability=probability)


def _blind(table: Table, words: NDArray[np.bool_]) -> Table:
    return replace(table, image=np.zeros_like(table.image), question=table.question * words)


def _lookup(fit: Table, test: Table) -> tuple[Floats, Floats]:
    """Mean scores of each kind of question, shrunk towards those of all; a kind never seen has those of all."""
    overall = fit.scores.mean(axis=0)  # (K,)
    kinds, kind = np.unique(fit.tasks, return_inverse=True)
    means = dict(zip(kinds, shrunk_means(fit.scores, kind, _SHRINK_ROWS), strict=True))
    on_fit, on_test = (np.array([means.get(task, overall) for task in t.tasks]) for t in (fit, test))
    return on_fit, on_test


def _by_size(fit: Table, test: Table) -> tuple[Floats, Floats]:
    """Mean scores of pictures of about the same number of pixels, in at most `_SIZES` parts of the fit rows."""
    names = fit.facts["feature_names"]["image"]
    area_fit, area_test = (sum(t.image[:, names.index(name)] for name in SIZE_FEATURES) for t in (fit, test))
    edges = np.unique(np.quantile(area_fit, np.linspace(0, 1, _SIZES + 1)[1:-1]))
    part_fit, part_test = (np.searchsorted(edges, area, side="right") for area in (area_fit, area_test))
    used, place = np.unique(part_fit, return_inverse=True)
    means = shrunk_means(fit.scores, place, _SHRINK_ROWS)  # (parts, K)
    nearest = np.abs(part_test[:, None] - used).argmin(axis=1)
    return means[place], means[nearest]


@dataclass(frozen=True)
class CascadePoint:
    """Every row at one scale first, and at a finer one when its first token leads by less than a threshold."""

    budget: float
    first: ScaleWord
    then: ScaleWord
    mean_cost: float
    score: float


def cascade(fit: Table, test: Table, budgets: list[float]) -> list[CascadePoint]:
    """The best cascade of two looks for each budget, both paid in full, chosen on fit rows; without margins none."""
    if not (np.isfinite(fit.margins).all() and np.isfinite(test.margins).all()):
        return []
    shares = np.linspace(0, 1, 21)
    ways = [
        (a, b, float(threshold))
        for a in range(len(fit.scales))
        for b in range(a + 1, len(fit.scales))
        for threshold in np.quantile(fit.margins[:, a], shares)
    ]
    on_fit = [_cascaded(fit, *way) for way in ways]
    found = []
    for budget in budgets:
        able = [i for i, (cost, _) in enumerate(on_fit) if cost <= budget]
        if able:
            best = ways[max(able, key=lambda i: on_fit[i][1])]
            a, b, _ = best
            found.append(CascadePoint(budget, fit.scales[a], fit.scales[b], *_cascaded(test, *best)))
    return found


def _cascaded(table: Table, first: int, then: int, threshold: float) -> tuple[float, float]:
    """Mean cost and mean score."""
    again = table.margins[:, first] < threshold
    score = np.where(again, table.scores[:, then], table.scores[:, first]).mean()
    if table.row_cost is not None:
        spent = table.row_cost[:, first] + again * table.row_cost[:, then]
        return float(spent.mean()), float(score)
    return float(table.cost[first] + again.mean() * table.cost[then]), float(score)
