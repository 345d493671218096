"""What is fitted side by side, and the two ways to put estimators together.

Letters: n rows, K scales, d features.
"""

from __future__ import annotations

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from .averages import Constant, Neighbours, TaskLookup
from .base import Floats, ScaleEstimator, Tasks
from .basis import Basis
from .learned import PooledTrees, ScaleLogistic, ScaleNetwork


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


def candidates(scales: tuple[float, ...], seed: int) -> dict[str, ScaleEstimator]:
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
