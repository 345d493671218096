"""How much more labels would bring: the shipped estimator fitted on parts of the labelled pictures, judged alike.

Letters: n rows, K scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.base import clone

from router.estimators.base import PlattScaling, ScaleEstimator
from router.fit.fit import seen_by
from router.metrics import Interval, Resamples, interval
from router.table import Table

from .budgets import Contender, samples

# Parts of the labelled pictures that are fitted anew; what ships was fitted on all.
PARTS = (1 / 8, 1 / 4, 1 / 2)
# More labels are worth it while twice as many bring this much.
WORTH = 0.001
# Labels tell of so many times as many pictures, and of no more: farther out a curve of four points is a guess.
FARTHEST = 4


@dataclass(frozen=True)
class Learned:
    """What a router of so many labelled pictures is ahead of the lookup, averaged over the budgets."""

    pictures: int
    ahead: Interval


def learning_curve(
    estimator: ScaleEstimator, fit: Table, test: Table, lookup: Contender, budgets: list[float],
    progress: Callable[[int], None],
) -> list[Learned]:  # fmt: skip
    """The estimator on nested parts of the fit's pictures, each calibrated on the pictures that it was not fitted on.

    The lookup keeps all labels. `progress` is told of each of `PARTS`.
    """
    resamples, names = Resamples(test.groups), np.unique(fit.groups)
    theirs = samples(lookup, test, budgets, resamples)  # (budgets, 1 + R)
    order, found = np.random.default_rng(0).permutation(names), []
    for part in PARTS:
        kept = order[: max(2, round(part * len(order)))]
        own = np.isin(fit.groups, kept)
        some, rest = fit.take(own), fit.take(~own)
        fitted = clone(estimator).fit(seen_by(estimator, some), some.targets, some.tasks)
        calibration = PlattScaling(per_scale=fit.probability is not None)
        calibration.fit(fitted.margins(seen_by(estimator, rest)), rest.scores)
        said = calibration.probability(fitted.margins(seen_by(estimator, test)))
        ours = samples(Contender.plain("part", said, said, test.costs), test, budgets, resamples)
        found.append(Learned(len(kept), interval((ours - theirs).mean(axis=0))))
        progress(1)
    return found


def enough(curve: Sequence[Learned]) -> int | None:
    """About how many pictures are worth labelling: from there on twice as many bring less than `WORTH`.

    By the least squares line of what it is ahead over one by the root of the pictures, however far out; None where the
    curve does not rise.
    """
    root = np.array([one.pictures**-0.5 for one in curve])
    ahead = np.array([one.ahead.value for one in curve])
    slope = np.polyfit(root, ahead, 1)[0]
    if slope >= 0:
        return None
    return _round((-slope * (1 - 2**-0.5) / WORTH) ** 2)


def _round(number: float) -> int:
    """Two leading digits, as an estimate has."""
    wide = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return max(1, round(number / wide) * wide)


def in_words(curve: Sequence[Learned]) -> list[str]:
    """The curve and what follows from it, for a terminal and the page."""
    if not curve:
        return []
    steps = "; ".join(f"{one.pictures:,} pictures {one.ahead.points()}" for one in curve)
    told = f"points ahead of the lookup, mean of the budgets, by labelled pictures: {steps}"
    wanted, has = enough(curve), curve[-1].pictures
    if wanted is None:
        return [told, "more labelled pictures brought nothing here: label no more"]
    if wanted <= has:
        return [told, f"label about {wanted:,} pictures: there are {has:,}, and more of them would bring little"]
    pays = f"there are {has:,}, and each doubling still pays"
    if wanted > FARTHEST * has:
        return [told, f"label {FARTHEST * has:,} pictures or more: {pays}, for how long so few do not tell"]
    return [told, f"label about {wanted:,} pictures: {pays}"]
