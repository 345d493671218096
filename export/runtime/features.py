"""What the router sees, in numpy: one definition, used when rows are labelled and again on the device.

Letters: P patches on a square grid of side G, D width of the language model, T tokens of the question.
Everything is computed from what the model has at hand anyway: `words`, which is each patch on its own as the
language model would read it (P, D), and the rows of the embedding table for the question's tokens (T, D).

A pooled picture cannot say *which* object is large; the match of the question's words with the patches can.
Both the picture's energy and the match are therefore followed over the pyramid of average-pooled grids: what a
coarser grid no longer shows, fewer visual tokens cannot answer.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .errors import MvlmError

FEATURE_VERSION = 1

Array = NDArray[np.float32]

_HASH_BINS = 64
_MATCHED_TOKENS = 2
_PYRAMID = 4
_NORM_QUANTILES = (0.1, 0.5, 0.9)
_TOP_PATCHES = (4, 10)
_EPSILON = np.float32(1e-6)


def image_feature_names() -> list[str]:
    """The names of `image_features`, in order."""
    return [
        *(f"energy_lost_{level}" for level in range(_PYRAMID)),
        "energy_kept",
        "log_energy",
        *(f"norm_q{round(100 * q)}" for q in _NORM_QUANTILES),
        "norm_spread",
        "outstanding_patches",
    ]


def question_feature_names() -> list[str]:
    """The names of `question_features`, in order."""
    per_token = [
        "peak", "mean", *(f"top{k}" for k in _TOP_PATCHES), "area", "spread",
        *(f"peak_pooled_{level}" for level in range(1, _PYRAMID + 1)),
    ]  # fmt: skip
    return [
        "tokens",
        *(f"match{rank}_{name}" for rank in range(_MATCHED_TOKENS) for name in per_token),
        *(f"hash{bin}" for bin in range(_HASH_BINS)),
    ]


def image_features(words: Array) -> Array:
    """What depends on the picture alone: (P, D) -> (d_image,).

    Average pooling is an orthogonal projection, so the energies that each level of the pyramid loses and the energy
    that the last level keeps are shares of one whole (reference: residual energy per pooling step).
    """
    grid = _as_grid(words)  # (G, G, D)
    total = float(np.square(grid).mean()) + float(_EPSILON)
    energies = [total] + [float(np.square(level).mean()) for level in _pyramid(grid)]
    lost = [(fine - coarse) / total for fine, coarse in pairwise(energies)]
    norms = np.linalg.norm(words, axis=1)  # (P,)
    quantiles = np.quantile(norms, _NORM_QUANTILES)
    outstanding = np.linalg.norm(words - np.median(words, axis=0), axis=1)  # (P,)
    values = [
        *lost,
        energies[-1] / total,
        np.log(total),
        *quantiles,
        norms.std() / (norms.mean() + _EPSILON),
        (outstanding > 0.5 * outstanding.max()).mean(),
    ]
    return np.asarray(values, np.float32)


def question_features(question: str, token_rows: Array, words: Array) -> Array:
    """What depends on the question, its match with this picture included: str, (T, D), (P, D) -> (d_question,).

    The tokens whose match with the patches stands out most are the words that name something in this picture.
    """
    if not len(token_rows):
        raise MvlmError("the question has no tokens: ask something", code="empty-question")
    directions = token_rows / (np.linalg.norm(token_rows, axis=1, keepdims=True) + _EPSILON)  # (T, D)
    maps = directions @ words.T  # (T, P)
    outstanding = maps.max(axis=1) - maps.mean(axis=1)  # (T,)
    order = np.argsort(-outstanding, kind="stable")[:_MATCHED_TOKENS]
    matched = [_match(maps[token]) for token in order]
    while len(matched) < _MATCHED_TOKENS:
        matched.append(np.zeros_like(matched[0]))
    return np.concatenate([[np.float32(len(token_rows))], *matched, _hashed(question)]).astype(np.float32)


def _match(scores: Array) -> Array:
    """How one word matches the patches, where, and what each pooling step leaves of it: (P,) -> (d,)."""
    grid = _as_grid(scores[:, None])  # (G, G, 1)
    ordered = np.sort(scores)[::-1]
    peak, mean = ordered[0], scores.mean()
    inside = scores >= (peak + mean) / 2
    rows, columns = np.divmod(np.flatnonzero(inside), grid.shape[0])
    spread = np.sqrt(rows.var() + columns.var()) / grid.shape[0]
    tops = [ordered[:k].mean() for k in _TOP_PATCHES]
    pooled = [level.max() for level in _pyramid(grid)]
    return np.asarray([peak, mean, *tops, inside.mean(), spread, *pooled], np.float32)


def _as_grid(patches: Array) -> Array:
    side = round(len(patches) ** 0.5)
    if side * side != len(patches):
        raise MvlmError(f"{len(patches)} patches do not fill a square grid", code="bad-features")
    return patches.reshape(side, side, -1)


def _pyramid(grid: Array) -> list[Array]:
    """Average-pooled copies of (G, G, D), each coarser than the one before and the last a single cell."""
    levels = []
    for side in pyramid_sides(grid.shape[0]):
        step = grid.shape[0] // side
        grid = grid.reshape(side, step, side, step, -1).mean(axis=(1, 3))  # (side, side, D)
        levels.append(grid)
    return levels


@lru_cache
def pyramid_sides(side: int) -> tuple[int, ...]:
    """The sides of the pooled grids under one of `side`: each divides the one before, halving as nearly as it can.

    The list has one length for every grid; grids with few divisors repeat a side, and lose nothing there.
    """
    chain = [side]
    while chain[-1] > 1:
        chain.append(next(s for s in range(chain[-1] // 2, 0, -1) if chain[-1] % s == 0))
    below = chain[1:]
    if len(below) > _PYRAMID:
        below = [*below[: _PYRAMID - 1], 1]
    return (*below, *[1] * (_PYRAMID - len(below)))


def _hashed(question: str) -> Array:
    """A bag of the question's words in a fixed number of bins; crc32 is the same on every platform."""
    bag = np.zeros(_HASH_BINS, np.float32)
    for word in question.lower().replace("?", " ").replace(".", " ").replace(",", " ").split():
        bag[zlib.crc32(word.encode()) % _HASH_BINS] += 1
    return bag
