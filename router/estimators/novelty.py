"""Is this question about this picture like those that the router was fitted on? A conformal score in feature space.

The picture and the question are each measured among their own kind: beside the many columns of words, a strange picture
would hardly move one distance of all features.

Letters: n rows, d features, p directions, c calibration rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag
from sklearn.base import BaseEstimator
from sklearn.model_selection import GroupKFold

Floats = NDArray[np.floating]
# The more folds, the more a fit without a row is like the fit that ships, whose distances must mean the same.
_FOLDS = 10
_DIRECTIONS = 48
# So that a share of a few in ten thousand can still be told from a smaller one.
_CALIBRATION_ROWS = 3999
# A direction with less of the mean variance than this counts as much as one that has it: it is mostly rounding.
_LEAST_VARIANCE = 0.01
# The distance at which either of the two is as strange as the other: this share of ordinary rows lies below.
_AS_STRANGE = 0.99


class Familiarity(BaseEstimator):
    """Squared Mahalanobis distances in the widest directions, summed, and the rank of that among calibration rows.

    Fitted state: `mean_` (d,), `directions_` (d, p), so that the distance is |(x - mean) @ directions|^2, and
    `calibration_` (c,), the distances of rows that the directions were not fitted on; and `out_of_fold_` (n,), the
    p-value of each row of the fit by directions that were not fitted on it.
    """

    def __init__(self, d_image: int = 0) -> None:
        """So many features, the first, are the picture's."""
        self.d_image = d_image

    def fit(self, x: Floats, groups: NDArray[np.str_]) -> Familiarity:
        """Features (n, d) float32 and the picture of each row."""
        distances = np.empty(len(x))
        folds = min(_FOLDS, len(np.unique(groups)))
        for seen, held_out in GroupKFold(folds).split(x, groups=groups):
            distances[held_out] = self._fit_directions(x[seen]).distance(x[held_out])
        self._fit_directions(x)
        # Quantiles taken upwards: a row never seems more familiar than among all of them.
        ranks = np.linspace(0, 1, min(len(x), _CALIBRATION_ROWS))
        self.calibration_ = np.quantile(distances, ranks, method="lower").astype(np.float32)
        self.out_of_fold_ = self._p_value(distances)
        return self

    def _fit_directions(self, x: Floats) -> Familiarity:
        x = x.astype(np.float64)
        self.mean_ = x.mean(axis=0)
        std = x.std(axis=0)
        # A feature that never moved is no measure of anything: it may move on the device without meaning more.
        scale = np.where(std > 1e-6 * (1 + np.abs(self.mean_)), 1 / np.maximum(std, 1e-12), 0)
        z = (x - self.mean_) * scale
        parts = [slice(0, self.d_image), slice(self.d_image, None)]
        blocks = [_directions(z[:, part]) for part in parts if z[:, part].shape[1]]
        self.directions_ = scale[:, None] * block_diag(*blocks)  # (d, p)
        return self

    def distance(self, x: Floats) -> Floats:
        """(n, d) -> (n,)."""
        return np.square((x - self.mean_) @ self.directions_).sum(axis=1)

    def p_value(self, x: Floats) -> Floats:
        """The conformal p-value of each row: (n, d) -> (n,) in 0..1, small where nothing calibrated was as strange."""
        return self._p_value(self.distance(x))

    def _p_value(self, distances: Floats) -> Floats:
        at_least = len(self.calibration_) - np.searchsorted(self.calibration_, distances)
        return (1 + at_least) / (1 + len(self.calibration_))


def _directions(z: Floats) -> Floats:
    """Directions (d, p) with |z @ directions|² at 1 for a row that is as strange as few of these (n, d) are."""
    variance, axes = np.linalg.eigh(z.T @ z / len(z))  # ascending
    variance, axes = variance[::-1][:_DIRECTIONS], axes[:, ::-1][:, :_DIRECTIONS]
    directions = axes / np.sqrt(np.maximum(variance, _LEAST_VARIANCE))
    usual = np.quantile(np.square(z @ directions).sum(axis=1), _AS_STRANGE)
    return directions / np.sqrt(max(usual, _LEAST_VARIANCE))
