"""What the estimators read: the features that say something, standardised, and the products of two that say more.

Letters: n rows, K scales, d features, p columns kept, q pairs.

Trees grow greedily, so where need is an exclusive-or of a feature of the picture and one of the question neither is
worth a split, and no tree finds the pair. All products are therefore screened at once, by one matrix product a scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

Floats = NDArray[np.floating]
# Standardised values are cut here: a linear model must not be carried away by one strange value.
LIMIT = 8.0
_RIDGE = 0.1
# Above the largest of so many independent statistics that say nothing (about the root of twice their log).
_ABOVE_CHANCE = 0.7
# Screening products takes rows * features^2 * scales multiplications; of larger tables a part of the rows is used.
_MOST_WORK = 2e10


class Basis(TransformerMixin, BaseEstimator):
    """Columns and products, chosen on the rows of the fit alone.

    Every step is one float32 operation on single numbers, so numpy, onnxruntime and the thresholds of trees agree to
    the last bit.

    Fitted state: `columns_` (p,), `mean_`, `per_std_` (p,), `pairs_` (q, 2) into the columns, `pair_mean_`,
    `pair_per_std_` (q,).
    """

    def __init__(self, wide: int = 128, kept: int = 64, most_pairs: int = 16) -> None:
        """Tables of more than `wide` features are cut to those `kept` that say most."""
        self.wide, self.kept, self.most_pairs = wide, kept, most_pairs

    def fit(self, x: Floats, y: Floats) -> Basis:
        """Features (n, d) float32 and scores (n, K)."""
        self.n_features_in_ = x.shape[1]
        self._standardise(x, np.flatnonzero(np.ptp(x, axis=0) > 0))
        z = self._columns(x)  # (n, p)
        target = y - y.mean(axis=0)  # (n, K)
        alone = column_strengths(z, target)
        pairs, together = self._screen_pairs(z, target)
        if z.shape[1] > self.wide:
            # A column is as strong as it is alone, or in the strongest pair that it belongs to.
            for pair, strength in zip(pairs, together, strict=True):
                alone[pair] = np.maximum(alone[pair], strength)
            keep = np.sort(np.argsort(-alone, kind="stable")[: self.kept])
            place = np.full(len(alone), -1)
            place[keep] = np.arange(len(keep))
            pairs = place[pairs]
            pairs = pairs[(pairs >= 0).all(axis=1)]
            self._standardise(x, self.columns_[keep])
            z = self._columns(x)
        self.pairs_ = pairs
        product = z[:, pairs[:, 0]] * z[:, pairs[:, 1]]  # (n, q)
        self.pair_mean_, self.pair_per_std_ = _location(product)
        return self

    def transform(self, x: Floats) -> Floats:
        """(n, d) -> (n, p + q) float32."""
        z = self._columns(x)
        product = z[:, self.pairs_[:, 0]] * z[:, self.pairs_[:, 1]]
        return np.column_stack([z, (product - self.pair_mean_) * self.pair_per_std_])

    def _standardise(self, x: Floats, columns: NDArray[np.integer]) -> None:
        self.columns_ = columns
        self.mean_, self.per_std_ = _location(x[:, columns])

    def _columns(self, x: Floats) -> Floats:
        limit = np.float32(LIMIT)
        z = (x[:, self.columns_].astype(np.float32) - self.mean_) * self.per_std_
        return np.clip(z, -limit, limit)

    def _screen_pairs(self, z: Floats, target: Floats) -> tuple[NDArray[np.integer], Floats]:
        """The pairs whose product tells more of the scores than chance would, strongest first: (q, 2), (q,)."""
        n, p = z.shape
        none = np.zeros((0, 2), np.int64), np.zeros(0)
        if not self.most_pairs or p < 2:
            return none
        rows = slice(None, None, max(1, int(np.ceil(n * p**2 * target.shape[1] / _MOST_WORK))))
        z, target = z[rows], target[rows]
        # What every column tells alone is taken away first.
        weights = np.linalg.solve(z.T @ z + _RIDGE * len(z) * np.eye(p), z.T @ target)
        rest = (target - z @ weights).astype(np.float32)
        spread = np.sqrt(np.square(z).T @ np.square(z) + 1e-6)  # (p, p)
        strength = np.max([np.abs((z * one[:, None]).T @ z) / (one.std() + 1e-6) for one in rest.T], axis=0) / spread
        # A square of a column with two values is that column again.
        two_values = [len(np.unique(z[:1000, j])) <= 2 for j in range(p)]
        strength[two_values, two_values] = 0
        above, beside = np.triu_indices(p)
        found = strength[above, beside]
        best = np.argsort(-found, kind="stable")[: self.most_pairs]
        best = best[found[best] > np.sqrt(2 * np.log(len(found))) + _ABOVE_CHANCE]
        return np.column_stack([above[best], beside[best]]), found[best]


def _location(values: Floats) -> tuple[Floats, Floats]:
    """Mean and one over the standard deviation of each column, float32."""
    std = values.std(axis=0, dtype=np.float64)
    mean = values.mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32), (1 / np.where(std > 0, std, 1)).astype(np.float32)


def column_strengths(z: Floats, target: Floats) -> Floats:
    """How much each column tells of the scores, as its largest t over scales: (n, p), (n, K) -> (p,)."""
    return np.abs(z.T @ target / (target.std(axis=0) + 1e-6) / len(z) ** 0.5).max(axis=1)
