"""What a router must beat: the same estimator with something taken away, and a table of the kinds of question.

Each baseline is fitted on the fit rows, takes its prices there, and is judged on the test rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from .estimators import PlattScaling, ScaleEstimator
from .fit import features, out_of_fold
from .table import Table

Floats = NDArray[np.floating]
# How many rows of all kinds a kind's own mean is mixed with, so that a rare kind does not overtrust a few rows.
_SHRINK_ROWS = 20


@dataclass(frozen=True)
class Baseline:
    """Probabilities (n, K) on the fit rows (out of fold, to set prices) and on the test rows."""

    name: str
    fit: Floats
    test: Floats


def baselines(
    estimator: ScaleEstimator, fit: Table, test: Table, progress: Callable[[int], None]
) -> Iterator[Baseline]:
    """The baselines, one after another; `progress` is told of each."""
    yield Baseline("lookup by task", *_lookup(fit, test))
    progress(1)
    # The match is computed from the picture as well: a question alone has its length and its bag of words.
    words = np.array([not name.startswith("match") for name in fit.facts["feature_names"]["question"]])
    yield _refitted("question only", estimator, *(_blind(t, words) for t in (fit, test)))
    progress(1)
    yield _refitted("image only", estimator, *(replace(t, question=np.zeros_like(t.question)) for t in (fit, test)))
    progress(1)
    # Labels of other rows: whatever this gains is a leak.
    order = np.random.default_rng(0).permutation(len(fit))
    yield _refitted("shuffled labels", estimator, replace(fit, runs=fit.runs[order]), test)
    progress(1)


COUNT = 4


def _refitted(name: str, estimator: ScaleEstimator, fit: Table, test: Table) -> Baseline:
    x = features(fit)
    margins = out_of_fold(estimator, x, fit)
    calibration = PlattScaling().fit(margins, fit.scores)
    whole = clone(estimator).fit(x, fit.scores, fit.tasks)
    return Baseline(name, calibration.probability(margins), calibration.probability(whole.margins(features(test))))


def _blind(table: Table, words: NDArray[np.bool_]) -> Table:
    return replace(table, image=np.zeros_like(table.image), question=table.question * words)


def _lookup(fit: Table, test: Table) -> tuple[Floats, Floats]:
    """Mean scores of each kind of question, shrunk towards those of all; a kind never seen has those of all."""
    overall = fit.scores.mean(axis=0)  # (K,)
    means = {}
    for task in np.unique(fit.tasks):
        rows = fit.scores[fit.tasks == task]
        means[task] = (rows.sum(axis=0) + _SHRINK_ROWS * overall) / (len(rows) + _SHRINK_ROWS)
    on_fit, on_test = (np.array([means.get(task, overall) for task in t.tasks]) for t in (fit, test))
    return on_fit, on_test
