"""What the router sees, in numpy: one definition, used when rows are labelled and again on the device.

Letters: P patches on a square grid of side G, D width of the language model, T tokens of the question.
Everything is computed from what the model has at hand anyway: `words`, which is each patch on its own as the
language model would read it (P, D), and the rows of the embedding table for the question's tokens (T, D).

A pooled picture cannot say *which* object is large; the match of the question's words with the patches can: how high
it is, as a product and as an angle, how large the region is and where, whether there are others like it. Both the
picture's energy and the match are followed over the pyramid of average-pooled grids, over all of the picture and at
the place of the match: what a coarser grid no longer shows there, fewer visual tokens cannot answer.

`benchmarks/router/features.py` measures what each group of features costs and brings.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .errors import MvlmError

FEATURE_VERSION = 2

Array = NDArray[np.float32]

# What a router of a model with tiles sees of a picture besides: how many tiles there are to be had.
SIZE_FEATURES = ("log2_height", "log2_width")

_HASH_BINS = 64
_MATCHED_TOKENS = 2
_PYRAMID = 4
_NORM_QUANTILES = (0.1, 0.5, 0.9)
_TOP_PATCHES = (4, 10)
_EPSILON = np.float32(1e-6)
_MATCH_NAMES = [
    "peak", "mean", *(f"top{k}" for k in _TOP_PATCHES), "angle", "area", "spread", "rivals", "row", "column",
    *(f"peak_pooled_{level}" for level in range(1, _PYRAMID + 1)),
    *(f"lost_there_{level}" for level in range(_PYRAMID)),
]  # fmt: skip


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


def size_features(height: int, width: int) -> Array:
    """The `SIZE_FEATURES` of a picture, which are known before any of it is encoded: pixels -> (2,)."""
    return np.log2(np.array([height, width], np.float32))


def question_feature_names() -> list[str]:
    """The names of `question_features`, in order."""
    return [
        "tokens",
        *(f"match{rank}_{name}" for rank in range(_MATCHED_TOKENS) for name in _MATCH_NAMES),
        "match_distance", "match_joint",
        *(f"hash{bin}" for bin in range(_HASH_BINS)),
    ]  # fmt: skip


def image_features(words: Array) -> Array:
    """What depends on the picture alone: (P, D) -> (d_image,).

    Average pooling is an orthogonal projection, so the energies that each level of the pyramid loses and the energy
    that the last level keeps are shares of one whole (reference: residual energy per pooling step).
    """
    grid = _as_grid(words)  # (G, G, D)
    squares = np.einsum("pd,pd->p", words, words)  # (P,)
    total = float(squares.sum()) / words.size + float(_EPSILON)
    energies = [total] + [float(np.vdot(level, level)) / level.size for level in _pyramid(grid)]
    lost = [(fine - coarse) / total for fine, coarse in pairwise(energies)]
    norms = np.sqrt(squares)  # (P,)
    usual = _mean_patch(words)  # (D,)
    outstanding = np.sqrt(np.maximum(squares - 2 * (words @ usual) + usual @ usual, 0))  # (P,)
    values = [
        *lost,
        energies[-1] / total,
        np.log(total),
        *np.quantile(norms, _NORM_QUANTILES),
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
    # Patches first: BLAS is nearly twice as quick as on the words' few rows.
    maps = np.ascontiguousarray((words @ directions.T).T)  # (T, P)
    outstanding = maps.max(axis=1) - maps.mean(axis=1)  # (T,)
    order = np.argsort(-outstanding, kind="stable")[:_MATCHED_TOKENS]
    usual = _mean_patch(words)  # (D,)
    matched = [_match(maps[token], words, usual) for token in order]
    while len(matched) < _MATCHED_TOKENS:
        matched.append(np.zeros_like(matched[0]))
    together = _together(maps[order])
    return np.concatenate([[np.float32(len(token_rows))], *matched, together, _hashed(question)]).astype(np.float32)


def _match(scores: Array, words: Array, usual: Array) -> Array:
    """How one word matches the patches, where, and what each pooling step leaves of it: (P,), (P, D), (D,) -> (d,)."""
    grid = _as_grid(scores[:, None])  # (G, G, 1)
    side = grid.shape[0]
    ordered = np.sort(scores)[::-1]
    best, peak, mean = int(scores.argmax()), ordered[0], scores.mean()
    half = (peak + mean) / 2
    rows, columns = np.divmod(np.flatnonzero(scores >= half), side)
    spread = np.sqrt(rows.var() + columns.var()) / side
    tops = [ordered[:k].mean() for k in _TOP_PATCHES]
    angle = peak / (np.linalg.norm(words[best]) + _EPSILON)
    region = [len(rows) / side**2, spread, _rivals(grid[..., 0], half), rows.mean() / side, columns.mean() / side]
    pooled = [level.max() for level in _pyramid(grid)]
    return np.asarray([peak, mean, *tops, angle, *region, *pooled, *_lost_there(best, words, usual)], np.float32)


def _rivals(grid: Array, half: Array) -> int:
    """In how many places the match stands out: cells above `half` that no neighbour exceeds, (G, G)."""
    padded = np.pad(grid, 1, constant_values=-np.inf)
    side = len(grid)
    along = np.maximum(np.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])  # (G + 2, G)
    highest = np.maximum(np.maximum(along[:-2], along[1:-1]), along[2:])
    return int(((grid >= half) & (grid >= highest[:side, :side])).sum())


def _lost_there(patch: int, words: Array, usual: Array) -> list[float]:
    """What each pooling step takes away at one patch, in parts of its own energy; `usual` is the mean of all (D,)."""
    side = round(len(words) ** 0.5)
    row, column = divmod(patch, side)
    grid = words.reshape(side, side, -1)
    here = words[patch]
    own = float(here @ here) + float(_EPSILON)
    lost = []
    for cells in pyramid_sides(side):
        step = side // cells
        top, left = row // step * step, column // step * step
        if cells == 1:
            coarser = usual  # (D,)
        else:
            coarser = _mean_patch(grid[top : top + step, left : left + step].reshape(-1, words.shape[1]))
        lost.append(float(np.square(here - coarser).sum()) / own)
        here = coarser
    return lost


def _mean_patch(patches: Array) -> Array:
    """(P, D) -> (D,): the mean as a product, which is several times faster than along an axis."""
    return np.full(len(patches), 1 / len(patches), np.float32) @ patches


def _together(maps: Array) -> list[float]:
    """How far apart the two matched words stand, and how well one patch matches both: (2 or 1, P)."""
    side = round(maps.shape[1] ** 0.5)
    rows, columns = np.divmod(maps.argmax(axis=1), side)
    apart = float(np.hypot(rows[0] - rows[-1], columns[0] - columns[-1])) / side
    return [apart, float(maps.mean(axis=0).max())]


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
        # Rows first, then columns: sums of whole blocks of memory.
        rows = grid.reshape(side, step, side * step, -1).sum(axis=1)  # (side, G, D)
        grid = rows.reshape(side, side, step, -1).sum(axis=2) / np.float32(step**2)  # (side, side, D)
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
