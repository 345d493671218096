"""P(right | image, question, m): what every candidate of the router keeps to, and its calibration.

Letters: n rows, K scales, d features. All candidates are pooled over scales: one fit sees every scale of every row,
which is worth several times the data of a fit for each scale (reference/router.md, 2.1). Weights are never bent to
balance classes: the decision needs probabilities that mean what they say.

What stands for an average of seen rows is in `averages`, what is fitted by descent or boosting in `learned`, and what
is fitted side by side in `candidates`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

Floats = NDArray[np.floating]
Tasks = NDArray[np.str_]


class ScaleEstimator(ClassifierMixin, BaseEstimator):
    """Margins (log odds) of a right answer at each scale, before calibration."""

    def fit(self, x: Floats, y: Floats, tasks: Tasks | None = None) -> ScaleEstimator:
        """Features (n, d) float32, scores (n, K) in 0..1, and the kind of each question, which only a lookup reads."""
        raise NotImplementedError

    def margins(self, x: Floats) -> Floats:
        """(n, d) -> (n, K)."""
        raise NotImplementedError


class PlattScaling(BaseEstimator):
    """Probability = sigmoid(slope * margin + intercept), fitted on out-of-fold margins (Platt 1999).

    Fitted state: `slope_`, `intercept_`, one for all scales or, where that was asked for, one for each, (K,).
    """

    slope_: float | list[float]
    intercept_: float | list[float]

    def __init__(self, per_scale: bool = False) -> None:
        self.per_scale = per_scale

    def fit(self, margins: Floats, y: Floats) -> PlattScaling:
        """Margins and scores (n, K)."""
        if self.per_scale:
            told = [_platt(margins[:, k], y[:, k]) for k in range(margins.shape[1])]
            self.slope_, self.intercept_ = (list(column) for column in zip(*told, strict=True))
        else:
            self.slope_, self.intercept_ = _platt(margins.reshape(-1), y.reshape(-1))
        return self

    def probability(self, margins: Floats) -> Floats:
        return sigmoid(np.asarray(self.slope_) * margins + np.asarray(self.intercept_))


def _platt(m: Floats, t: Floats) -> list[float]:
    """Slope and intercept: (n,), (n,)."""
    from scipy.optimize import minimize

    def objective(ab: Floats) -> tuple[float, Floats]:
        z = ab[0] * m + ab[1]
        error = sigmoid(z) - t
        return float((np.logaddexp(0, z) - t * z).mean()), np.array([(error * m).mean(), error.mean()])

    found: list[float] = minimize(objective, np.array([1.0, 0.0]), jac=True, method="BFGS").x.tolist()
    return found


def sigmoid(x: Floats) -> Floats:
    """Probabilities of margins."""
    from scipy.special import expit

    return expit(x)
