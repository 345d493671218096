"""What each price comes to on rows that a router has not seen.

A price decides by how the probabilities of a row differ between scales, and how one fit rates a whole scale is not how
another does: read from fits that are not the one that ships, a price spends more or less than it says. So the costs are
read from what ships, on its own rows; by how much a fit decides otherwise on rows that it has seen, its folds tell.

Letters: n rows, K scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.routing.policy import Policy, Seen
from router.estimators.base import PlattScaling, ScaleEstimator
from router.policy import Floats

# For each fold the rows that were fitted on, and the estimators whose mean says the margins.
Fits = Sequence[tuple[NDArray[np.integer], Sequence[ScaleEstimator]]]
# The correction changes slowly with the price: it is read at so many, and is in between elsewhere.
_GRID = np.geomspace(1e-4, 20, 60)


@dataclass(frozen=True)
class Fold:
    """One fit of a part of the rows: what it says of those, and of the rest."""

    seen: Seen
    unseen: Seen


@dataclass(frozen=True)
class Spending:
    """Rows as what ships sees them: `own` were fitted on, `apart` were not."""

    own: Seen
    apart: Seen
    folds: Sequence[Fold]

    def mean_costs(self, policy: Policy, prices: Floats) -> NDArray[np.float64]:
        """What a row that was not fitted on costs at each price, from the lowest up; it never rises."""
        rows, apart = len(self.own.strange), len(self.apart.strange)
        own = np.array([policy.mean_cost(self.own, price) for price in prices])
        found = own * np.interp(prices, _GRID, self._correction(policy)) if self.folds else own
        if apart:
            beside = np.array([policy.mean_cost(self.apart, price) for price in prices])
            found = (rows * found + apart * beside) / (rows + apart)
        costs = policy.cost if self.own.cost is None else self.own.cost
        return np.minimum.accumulate(np.clip(found, np.min(costs), np.max(costs)))

    def priced(self, policy: Policy, prices: Floats) -> list[tuple[float, float]]:
        """Prices and mean costs, without those that spend what the one before does."""
        costs = self.mean_costs(policy, prices)
        kept = np.concatenate([[True], np.diff(costs) != 0])
        return list(zip(prices[kept].tolist(), costs[kept].tolist(), strict=True))

    def _correction(self, policy: Policy) -> NDArray[np.float64]:
        """What unseen rows cost for what seen ones do, over all folds, at each price of the grid."""
        parts = np.array([len(fold.unseen.strange) for fold in self.folds], float)
        unseen, seen = (
            [parts @ [policy.mean_cost(rows, price) for rows in side] for price in _GRID]
            for side in ([fold.unseen for fold in self.folds], [fold.seen for fold in self.folds])
        )
        return np.asarray(unseen) / np.asarray(seen)


def spending_of(
    seen: Seen, apart: NDArray[np.bool_], x: Any, estimator: ScaleEstimator, fits: Fits, calibration: PlattScaling
) -> Spending:  # fmt: skip
    """The spending of an estimator that was fitted on `x`, the rows of `seen` that are not `apart`, as its `fits` were
    on parts of them."""
    rows, folds = seen.take(~apart), []
    for held_in, parts in fits:
        margins = np.mean([one.margins(x) for one in parts], axis=0)
        said, out = replace(rows, probability=calibration.probability(margins)), np.ones(len(rows.strange), bool)
        out[held_in] = False
        folds.append(Fold(said.take(held_in), said.take(out)))
    own = replace(rows, probability=calibration.probability(estimator.margins(x)))
    return Spending(own, seen.take(apart), folds)
