"""Candidates that are fitted by boosting or by descent: trees, a logistic regression, a small network.

Letters: n rows, K scales, d features, h hidden units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .base import Floats, ScaleEstimator, Tasks, sigmoid
from .basis import column_strengths

_EPSILON = 1e-9


class PooledTrees(ScaleEstimator):
    """Gradient-boosted trees with log2 m as one more feature.

    Fitted state: `booster_`, LightGBM's own; `scales_log2_` (K,).
    """

    def __init__(
        self,
        scales: tuple[float, ...] = (1,),
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
            slope = z.T @ (sigmoid(margin) - y) / len(x) + to_w.T @ (penalty * w)
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
            error = (sigmoid(margin) - y) / np.float32(len(x))  # (n, K)
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
