"""P(right | image, question, m): the candidates, with scikit-learn's contract.

Letters: n rows, K scales, d features. All are pooled over scales: one fit sees every scale of every row, which is worth
several times the data of a fit for each scale (reference/router.md, 2.1). Weights are never bent to balance classes:
the decision needs probabilities that mean what they say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

Floats = NDArray[np.floating]
_EPSILON = 1e-9


class ScaleEstimator(ClassifierMixin, BaseEstimator):
    """Margins (log odds) of a right answer at each scale, before calibration."""

    def fit(self, x: Floats, y: Floats) -> ScaleEstimator:
        """Features (n, d) float32 and scores (n, K) in 0..1."""
        raise NotImplementedError

    def margins(self, x: Floats) -> Floats:
        """(n, d) -> (n, K)."""
        raise NotImplementedError


class PooledTrees(ScaleEstimator):
    """Gradient-boosted trees with log2 m as one more feature.

    Fitted state: `booster_`, LightGBM's own; `scales_log2_` (K,).
    """

    def __init__(
        self, scales: tuple[int, ...] = (1,), num_trees: int = 150, num_leaves: int = 15, seed: int = 0
    ) -> None:
        self.scales, self.num_trees, self.num_leaves, self.seed = scales, num_trees, num_leaves, seed

    def fit(self, x: Floats, y: Floats) -> PooledTrees:
        import lightgbm

        self.scales_log2_ = np.log2(np.asarray(self.scales, np.float32))
        self.n_features_in_ = x.shape[1]
        parameters: dict[str, Any] = {
            # Cross entropy takes graded scores as they are.
            "objective": "cross_entropy", "num_leaves": self.num_leaves, "learning_rate": 0.06,
            "min_data_in_leaf": 40, "bagging_fraction": 0.8, "bagging_freq": 1, "feature_fraction": 0.6,
            "seed": self.seed, "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1,
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

    def fit(self, x: Floats, y: Floats) -> ScaleLogistic:
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

    def margins(self, x: Floats) -> Floats:
        check_is_fitted(self)
        return (x - self.mean_) / self.std_ @ self.weights_ + self.intercepts_


class Constant(ScaleEstimator):
    """The mean score of each scale, whatever the row: what ships when nothing beats the fixed scales.

    Fitted state: `margins_` (K,).
    """

    def fit(self, x: Floats, y: Floats) -> Constant:
        rate = np.clip(y.mean(axis=0), 1e-4, 1 - 1e-4).astype(np.float64)
        self.margins_ = np.log(rate / (1 - rate))
        self.n_features_in_ = x.shape[1]
        return self

    def margins(self, x: Floats) -> Floats:
        check_is_fitted(self)
        return np.tile(self.margins_, (len(x), 1))


def candidates(scales: tuple[int, ...], seed: int) -> dict[str, ScaleEstimator]:
    """What is fitted side by side, from the simplest to the most flexible."""
    return {
        "logistic": ScaleLogistic(l2=3.0),
        "trees-small": PooledTrees(scales, num_trees=150, num_leaves=15, seed=seed),
        "trees-large": PooledTrees(scales, num_trees=200, num_leaves=31, seed=seed),
    }


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
