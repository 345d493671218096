"""How far a file may be from torch, by precision: one table, and the arithmetic of a fair comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_POINT = 100.0


@dataclass(frozen=True)
class Tolerance:
    """What one precision allows.

    Attributes:
        relative: the largest difference in a phase, as a share of the largest value that torch computed there. Where
            weights are integers, torch holds the same rounded weights, so that this is about the file, not about
            how coarse the numbers are.
        answers: the least share of greedy answers that are torch's, token for token. Coarse weights may answer
            otherwise; what that is worth is in points.
        points: how many points of accuracy a scale may lose, as far as its interval is sure of it.
        kl: how far, in nats a token, the chances of the next token may move from the model's on the reference answers.
        choices: the least share of questions for which the router chooses the same scale.
    """

    relative: float
    answers: float
    points: float
    kl: float
    choices: float


# Float32 graphs of this kind differ by about 1e-6 (a tower of twelve layers) and 1e-5 (logits after 24 layers); half
# precision has eleven bits; in 8 and 4 bits the activations are rounded to 8 bits in each product.
# What `kl` allows in 8 and 4 bits is a first guess: no shipped form was measured on real weights yet.
TOLERANCES = {
    "float32": Tolerance(relative=1e-4, answers=1.0, points=0.0, kl=1e-5, choices=1.0),
    "float16": Tolerance(relative=3e-2, answers=0.5, points=1.0, kl=0.01, choices=0.9),
    "int8": Tolerance(relative=2e-1, answers=0.0, points=2.0, kl=0.05, choices=0.8),
    "int4": Tolerance(relative=2e-1, answers=0.0, points=5.0, kl=0.15, choices=0.8),
    "int4-fast": Tolerance(relative=2e-1, answers=0.0, points=5.0, kl=0.3, choices=0.8),
}
_OLD_NAMES = {"int4-128": "int4-fast"}


def tolerance(precision: str) -> Tolerance:
    """What a precision allows, by any name that it ever had in a bundle."""
    return TOLERANCES[_OLD_NAMES.get(precision, precision)]


def coarsest(precisions: Sequence[str]) -> Tolerance:
    """What a whole answer may be allowed when its parts have these precisions."""
    return max(map(tolerance, precisions), key=list(TOLERANCES.values()).index)


@dataclass(frozen=True)
class Lost:
    """What the files lose against torch, with a 95 % interval (negative: they gain)."""

    points: float
    low: float
    high: float


def points_lost(torch_scores: Sequence[float], file_scores: Sequence[float], groups: Sequence[str]) -> Lost:
    """The mean difference of paired scores (0..1), resampled by group: rows of one picture are not independent."""
    return mean_of(_POINT * (np.asarray(torch_scores) - np.asarray(file_scores)), groups)


def mean_of(values: Sequence[float] | NDArray[np.float64], groups: Sequence[str]) -> Lost:
    """The mean of one value for each row, with its interval, resampled by group."""
    difference = np.asarray(values, np.float64)  # (rows,)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(group, difference), np.bincount(group)
    drawn = np.random.default_rng(0).integers(0, len(sums), (_RESAMPLES, len(sums)))
    means: NDArray[np.float64] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)  # (resamples,)
    low, high = np.percentile(means, [2.5, 97.5])
    return Lost(float(difference.mean()), float(low), float(high))
