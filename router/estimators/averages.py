"""Candidates that give the mean scores of seen rows: of all, of a kind of question, of the nearest.

Letters: n rows, K scales, d features, T tasks, N points, p columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from .base import Floats, ScaleEstimator, Tasks
from .basis import column_strengths

_EPSILON = 1e-9


class Constant(ScaleEstimator):
    """The mean score of each scale, whatever the row: what ships when nothing beats the fixed scales.

    Fitted state: `margins_` (K,).
    """

    def fit(self, x: Floats, y: Floats, tasks: Tasks | None = None) -> Constant:
        rate = np.clip(y.mean(axis=0), 1e-4, 1 - 1e-4).astype(np.float64)
        self.margins_ = np.log(rate / (1 - rate))
        self.n_features_in_ = x.shape[1]
        return self

    def margins(self, x: Floats) -> Floats:
        check_is_fitted(self)
        return np.tile(self.margins_, (len(x), 1))


class TaskLookup(ScaleEstimator):
    """The mean scores of each kind of question, weighted by how likely the question is of that kind.

    The kind of a question is not known on the device, so it is told from the features. Fitted state: `kind_weights_`
    (d, T), `kind_intercepts_` (T,), `table_` (T, K).
    """

    def __init__(self, shrink_rows: float = 20.0) -> None:
        """A kind's own mean is mixed with so many rows of all kinds, so that a rare kind does not overtrust a few."""
        self.shrink_rows = shrink_rows

    def fit(self, x: Floats, y: Floats, tasks: Tasks | None = None) -> TaskLookup:
        from sklearn.linear_model import LogisticRegression

        self.n_features_in_ = x.shape[1]
        kinds, kind = np.unique(np.zeros(len(x), str) if tasks is None else tasks, return_inverse=True)
        self.table_ = shrunk_means(y, kind, self.shrink_rows)
        self.kind_weights_, self.kind_intercepts_ = np.zeros((x.shape[1], len(kinds))), np.zeros(len(kinds))
        if len(kinds) > 1:
            told = LogisticRegression(C=0.1, max_iter=60, tol=1e-3)
            with _quietly_unfinished():
                told.fit(x, kind)
            weights, intercepts = told.coef_.T, told.intercept_
            if len(kinds) == 2:  # scikit-learn keeps one column for two kinds
                weights, intercepts = (np.column_stack([0 * w, w]) for w in (weights, intercepts[None]))
            self.kind_weights_, self.kind_intercepts_ = weights, np.ravel(intercepts)
        return self

    def margins(self, x: Floats) -> Floats:
        from scipy.special import softmax

        check_is_fitted(self)
        return log_odds(softmax(x @ self.kind_weights_ + self.kind_intercepts_, axis=1) @ self.table_)


class Neighbours(ScaleEstimator):
    """The mean scores of the nearest rows, nearer ones weighing more, in features that are stretched by what they tell.

    Weights fall to nothing at the distance of the farthest neighbour, so that a row that comes or goes there changes
    nothing. Fitted state: `stretch_` (d, p), `points_` (N, p), `scores_` (N, K), `prior_` (K,).
    """

    def __init__(self, neighbours: int = 60, most_points: int = 4000, most_columns: int = 16, seed: int = 0) -> None:
        self.neighbours, self.most_points, self.most_columns = neighbours, most_points, most_columns
        self.seed = seed

    def fit(self, x: Floats, y: Floats, tasks: Tasks | None = None) -> Neighbours:
        self.n_features_in_ = x.shape[1]
        kept = np.sort(np.random.default_rng(self.seed).permutation(len(x))[: self.most_points])
        tells = column_strengths(x, y - y.mean(axis=0))  # (d,)
        best = np.argsort(-tells, kind="stable")[: self.most_columns]
        self.stretch_ = np.zeros((x.shape[1], len(best)))
        self.stretch_[best, np.arange(len(best))] = tells[best] / (tells.max() + _EPSILON)
        self.points_, self.scores_, self.prior_ = x[kept] @ self.stretch_, y[kept].astype(float), y.mean(axis=0)
        return self

    def margins(self, x: Floats) -> Floats:
        check_is_fitted(self)
        at_once = max(1, int(1e7 / len(self.points_)))
        parts = [self._near(x[start : start + at_once]) for start in range(0, len(x), at_once)]
        return log_odds(np.concatenate(parts))

    def _near(self, x: Floats) -> Floats:
        """Mean scores around each row: (n, d) -> (n, K)."""
        at = x @ self.stretch_
        squared = np.square(at).sum(axis=1)[:, None] - 2 * at @ self.points_.T + np.square(self.points_).sum(axis=1)
        reach = np.partition(squared, self.reach, axis=1)[:, self.reach, None]  # (n, 1)
        weight = np.maximum(1 - squared / (reach + NEIGHBOUR_FLOOR), 0)  # (n, N)
        return (weight @ self.scores_ + self.prior_) / (weight.sum(axis=1, keepdims=True) + 1)

    @property
    def reach(self) -> int:
        """Which nearest row, counted from 0, is the first that weighs nothing."""
        return min(self.neighbours, len(self.points_) - 1)


NEIGHBOUR_FLOOR = 0.05


def shrunk_means(y: Floats, kind: NDArray[np.integer], shrink_rows: float) -> Floats:
    """Mean scores of each kind, mixed with some rows of all: (n, K), (n,) -> (T, K)."""
    counts = np.bincount(kind)[:, None]
    sums = np.zeros((len(counts), y.shape[1]))
    np.add.at(sums, kind, y)
    return (sums + shrink_rows * y.mean(axis=0)) / (counts + shrink_rows)


def log_odds(p: Floats) -> Floats:
    """Margins of probabilities, kept finite."""
    p = np.clip(p, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return np.log(p / (1 - p))


LEAST_PROBABILITY = 1e-3


@contextmanager
def _quietly_unfinished() -> Iterator[None]:
    """A fit that stops after its steps is what was asked for."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
