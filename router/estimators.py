"""P(right | image, question, m): the candidates, with scikit-learn's contract.

Letters: n rows, K scales, d features, T tasks, h hidden units, N points. All are pooled over scales: one fit sees every
scale of every row, which is worth several times the data of a fit for each scale (reference/router.md, 2.1). Weights
are never bent to balance classes: the decision needs probabilities that mean what they say.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted

from .basis import Basis, column_strengths

Floats = NDArray[np.floating]
Tasks = NDArray[np.str_]
_EPSILON = 1e-9


class ScaleEstimator(ClassifierMixin, BaseEstimator):
    """Margins (log odds) of a right answer at each scale, before calibration."""

    def fit(self, x: Floats, y: Floats, tasks: Tasks | None = None) -> ScaleEstimator:
        """Features (n, d) float32, scores (n, K) in 0..1, and the kind of each question, which only a lookup reads."""
        raise NotImplementedError

    def margins(self, x: Floats) -> Floats:
        """(n, d) -> (n, K)."""
        raise NotImplementedError


class PooledTrees(ScaleEstimator):
    """Gradient-boosted trees with log2 m as one more feature.

    Fitted state: `booster_`, LightGBM's own; `scales_log2_` (K,).
    """

    def __init__(
        self,
        scales: tuple[int, ...] = (1,),
        num_trees: int = 150,
        num_leaves: int = 15,
        rate: float = 0.1,
        monotone: bool = False,
        seed: int = 0,
    ) -> None:
        """With `monotone` no scale is ever less likely right than a coarser one."""
        self.scales, self.num_trees, self.num_leaves, self.rate = scales, num_trees, num_leaves, rate
        self.monotone, self.seed = monotone, seed

    def fit(self, x: Floats, y: Floats, tasks: Tasks | None = None) -> PooledTrees:
        import lightgbm

        self.scales_log2_ = np.log2(np.asarray(self.scales, np.float32))
        self.n_features_in_ = x.shape[1]
        parameters: dict[str, Any] = {
            # Cross entropy takes graded scores as they are.
            "objective": "cross_entropy", "num_leaves": self.num_leaves, "learning_rate": self.rate,
            "min_data_in_leaf": 40, "max_bin": 63, "bagging_fraction": 0.8, "bagging_freq": 1, "feature_fraction": 0.6,
            "seed": self.seed, "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1,
            "monotone_constraints": [0] * x.shape[1] + [int(self.monotone)],
        }  # fmt: skip
        data = lightgbm.Dataset(self._with_scale(x), y.reshape(-1), free_raw_data=True)
        self.booster_ = lightgbm.train(parameters, data, num_boost_round=self.num_trees)
        return self

    def margins(self, x: Floats) -> Floats:
        check_is_fitted(self)
        raw = self.booster_.predict(self._with_scale(x), raw_score=True, num_threads=1)
        return np.asarray(raw).reshape(len(x), -1)

    def _with_scale(self, x: Floats) -> Floats:
        """(n, d) -> (n * K, d + 1): each row once a scale, the scale last."""
        pooled = np.empty((len(x), len(self.scales_log2_), x.shape[1] + 1), np.float32)  # (n, K, d + 1)
        pooled[:, :, :-1] = x[:, None]
        pooled[:, :, -1] = self.scales_log2_
        return pooled.reshape(-1, x.shape[1] + 1)


class ScaleLogistic(ScaleEstimator):
    """One logistic regression with every feature times every scale, on standardised features.

    Fitted state: `mean_`, `std_` (d,), `weights_` (d, K), `intercepts_` (K,).
    """

    def __init__(self, l2: float = 1.0) -> None:
        self.l2 = l2

    def fit(self, x: Floats, y: Floats, tasks: Tasks | None = None) -> ScaleLogistic:
        from threadpoolctl import threadpool_limits

        # Products this narrow are several times slower when BLAS shares them out between threads.
        with threadpool_limits(1, user_api="blas"):
            return self._fit(x, y)

    def _fit(self, x: Floats, y: Floats) -> ScaleLogistic:
        from scipy.linalg import cholesky, solve_triangular
        from scipy.optimize import minimize

        self.n_features_in_ = x.shape[1]
        self.mean_ = x.mean(axis=0).astype(np.float64)
        self.std_ = np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0).astype(np.float64)
        z = np.column_stack([(x - self.mean_) / self.std_, np.ones(len(x))])  # (n, d + 1)
        penalty = np.append(np.full(x.shape[1], self.l2), 0.0)[:, None] / len(x)
        shape = (z.shape[1], y.shape[1])
        # Matches of one word are nearly copies of each other, and L-BFGS crawls along such directions. In coordinates v
        # with w = to_w @ v the features are uncorrelated, and a few steps are enough.
        gram = z.T @ z / len(x) + np.diag(penalty[:, 0] + _EPSILON)
        to_w = solve_triangular(cholesky(gram), np.eye(len(gram)))
        z = z @ to_w

        def objective(flat: Floats) -> tuple[float, Floats]:
            v = flat.reshape(shape)
            w, margin = to_w @ v, z @ v  # (d + 1, K), (n, K)
            loss = np.logaddexp(0, margin).sum() - (y * margin).sum()
            slope = z.T @ (_sigmoid(margin) - y) / len(x) + to_w.T @ (penalty * w)
            return float(loss / len(x) + (penalty * w**2).sum() / 2), slope.reshape(-1)

        found = minimize(objective, np.zeros(shape).reshape(-1), jac=True, method="L-BFGS-B", options={"maxiter": 200})
        w = to_w @ found.x.reshape(shape)
        self.weights_, self.intercepts_ = w[:-1], w[-1]
        return self

    def on_features(self) -> tuple[Floats, Floats]:
        """Weights (d, K) and intercepts (K,) for features as they come, not standardised."""
        weights = self.weights_ / self.std_[:, None]
        return weights, self.intercepts_ - self.mean_ @ weights

    def margins(self, x: Floats) -> Floats:
        check_is_fitted(self)
        return (x - self.mean_) / self.std_ @ self.weights_ + self.intercepts_


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


class ScaleNetwork(ScaleEstimator):
    """Every feature through a few tanh units, fitted whole by L-BFGS on the cross entropy of graded scores.

    So narrow a layer shares what it learns between the scales, and between rows of one kind: a unit at its end takes no
    notice of the features that say nothing, where a line beside it would. The first units start along the directions
    that a logistic regression found, and what a feature tells alone is how freely the units may read it.

    Fitted state: `hidden_` (d, h), `bias_` (h,), `out_` (h, K), `intercepts_` (K,).
    """

    def __init__(self, hidden: int = 4, l2: float = 10.0, steps: int = 150, seed: int = 0) -> None:
        self.hidden, self.l2, self.steps, self.seed = hidden, l2, steps, seed

    def fit(self, x: Floats, y: Floats, tasks: Tasks | None = None) -> ScaleNetwork:
        from scipy.optimize import minimize
        from threadpoolctl import threadpool_limits

        self.n_features_in_ = x.shape[1]
        tells = column_strengths(x, y - y.mean(axis=0))  # (d,)
        stretch = (tells / (tells.max() + _EPSILON)).astype(np.float32)
        start = self._start(x, y, stretch)
        x, y = (x * stretch).astype(np.float32), y.astype(np.float32)
        shapes = [part.shape for part in start]
        ends = np.cumsum([part.size for part in start])[:-1]
        held = [self.l2, 0.0, _OUT_L2, 0.0]
        penalty = np.repeat(held, [part.size for part in start]) / len(x)

        def parts(flat: Floats) -> list[Floats]:
            return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]

        def objective(flat: Floats) -> tuple[float, Floats]:
            hidden, bias, out, intercepts = parts(flat.astype(np.float32))
            active = np.tanh(x @ hidden + bias)  # (n, h)
            margin = active @ out + intercepts  # (n, K)
            loss = np.logaddexp(0, margin).sum(dtype=np.float64) - (y * margin).sum(dtype=np.float64)
            error = (_sigmoid(margin) - y) / np.float32(len(x))  # (n, K)
            inner = error @ out.T * (1 - active**2)  # (n, h)
            slopes = [x.T @ inner, inner.sum(axis=0), active.T @ error, error.sum(axis=0)]
            slope = np.concatenate([slope.ravel() for slope in slopes]).astype(np.float64)
            return float(loss / len(x) + (penalty * flat**2).sum() / 2), slope + penalty * flat

        with threadpool_limits(1, user_api="blas"):
            flat = np.concatenate([part.ravel() for part in start])
            found = minimize(objective, flat, jac=True, method="L-BFGS-B", options={"maxiter": self.steps})
        hidden, self.bias_, self.out_, self.intercepts_ = parts(found.x)
        self.hidden_ = hidden * stretch[:, None]
        return self

    def _start(self, x: Floats, y: Floats, stretch: Floats) -> list[Floats]:
        """Where the search begins: (d, h) for stretched features, (h,), (h, K), (K,)."""
        d, h, k = x.shape[1], self.hidden, y.shape[1]
        random = np.random.default_rng(self.seed)
        hidden = random.normal(0, 0.3, (d, h))
        along, *_ = np.linalg.svd(ScaleLogistic(self.l2).fit(x, y).on_features()[0], full_matrices=False)
        lines = min(h, _LINES, along.shape[1])
        hidden[:, :lines] = along[:, :lines] / (stretch[:, None] + 0.05)
        rate = y.mean(axis=0).clip(0.01, 0.99)
        return [hidden, np.zeros(h), random.normal(0, 0.3, (h, k)), np.log(rate / (1 - rate))]

    def margins(self, x: Floats) -> Floats:
        check_is_fitted(self)
        return np.tanh(x @ self.hidden_ + self.bias_) @ self.out_ + self.intercepts_


_OUT_L2 = 1.0
# So many of a logistic regression's main directions over the scales are worth a start.
_LINES = 2


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


class Blend(ScaleEstimator):
    """The mean margin of several estimators: what a smooth one and a stepped one get wrong is not the same.

    Fitted state: `parts_`, by name.
    """

    def __init__(self, parts: dict[str, ScaleEstimator]) -> None:
        self.parts = parts

    def fit(self, x: Floats, y: Floats, tasks: Tasks | None = None) -> Blend:
        self.n_features_in_ = x.shape[1]
        self.parts_ = {name: clone(part).fit(x, y, tasks) for name, part in self.parts.items()}
        return self

    def margins(self, x: Floats) -> Floats:
        check_is_fitted(self)
        return np.mean([part.margins(x) for part in self.parts_.values()], axis=0)


class OnBasis(ScaleEstimator):
    """An estimator on what `Basis` makes of the features. Fitted state: `basis_`, `head_`."""

    def __init__(self, head: ScaleEstimator, wide: int = 128, kept: int = 64, most_pairs: int = 16) -> None:
        self.head, self.wide, self.kept, self.most_pairs = head, wide, kept, most_pairs

    def fit(self, x: Floats, y: Floats, tasks: Tasks | None = None) -> OnBasis:
        self.n_features_in_ = x.shape[1]
        self.basis_ = Basis(self.wide, self.kept, self.most_pairs).fit(x, y)
        self.head_ = clone(self.head).fit(self.basis_.transform(x), y, tasks)
        return self

    def margins(self, x: Floats) -> Floats:
        check_is_fitted(self)
        return self.head_.margins(self.basis_.transform(x))


def candidates(scales: tuple[int, ...], seed: int) -> dict[str, ScaleEstimator]:
    """What is fitted side by side, from the simplest to the most flexible. A blend's parts stand before it."""
    network = ScaleNetwork(seed=seed)
    trees = PooledTrees(scales, num_trees=100, num_leaves=31, seed=seed)
    heads = {
        "logistic": ScaleLogistic(l2=3.0),
        "one bend": ScaleNetwork(hidden=1, seed=seed),
        "network": network,
        "neighbours": Neighbours(seed=seed),
        "trees, monotone": PooledTrees(scales, num_trees=100, num_leaves=15, monotone=True, seed=seed),
        "trees": trees,
        "blend": Blend({"network": network, "trees": trees}),
    }
    plain = {"constant": Constant(), "lookup by task": OnBasis(TaskLookup(), most_pairs=0)}
    return plain | {name: OnBasis(head) for name, head in heads.items()}


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


class PlattScaling(BaseEstimator):
    """Probability = sigmoid(slope * margin + intercept), fitted on out-of-fold margins (Platt 1999)."""

    def fit(self, margins: Floats, y: Floats) -> PlattScaling:
        from scipy.optimize import minimize

        m, t = margins.reshape(-1), y.reshape(-1)

        def objective(ab: Floats) -> tuple[float, Floats]:
            z = ab[0] * m + ab[1]
            error = _sigmoid(z) - t
            return float((np.logaddexp(0, z) - t * z).mean()), np.array([(error * m).mean(), error.mean()])

        self.slope_, self.intercept_ = minimize(objective, np.array([1.0, 0.0]), jac=True, method="BFGS").x.tolist()
        return self

    def probability(self, margins: Floats) -> Floats:
        return _sigmoid(self.slope_ * margins + self.intercept_)


def _sigmoid(x: Floats) -> Floats:
    from scipy.special import expit

    return expit(x)
