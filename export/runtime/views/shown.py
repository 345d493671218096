"""A picture at a scale: which views stand for it, the text that holds their places, and how their tokens are stitched.

Letters: G tokens along a side of a view (√m), m tokens of a view, T tokens of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.runtime.errors import MvlmError

from .clip import frames_of, number_of
from .clip_words import ClipWords, Timing, words_around
from .cutting import Canvas, Size, View
from .scale import Scale
from .spec import Stitching, ViewSpec

# Stands for the newline vector among the numbers of tokens.
NEWLINE = -1


@dataclass(frozen=True)
class Stitch:
    """How the tokens of a picture follow from those of its views, one after another.

    Token t is the sum over k of `weights[t, k]` times token `sources[t, k]`; `NEWLINE` names the newline vector. Where
    nothing is shrunk there is one source a token, and its weight is 1.
    """

    sources: NDArray[np.int64]  # (T, 1) or (T, 4)
    weights: NDArray[np.float32]  # as `sources`


@dataclass(frozen=True)
class Shown:
    """A picture at a scale.

    Attributes:
        views: in the order in which their tokens stand.
        tokens: of each view.
        text: what stands in the prompt for the picture, placeholders and marks.
        stitch: how placeholders follow from the views' tokens; None where they are the same.
        num_placeholders: in `text`.
    """

    views: list[View]
    tokens: int
    text: str
    stitch: Stitch | None
    num_placeholders: int

    @classmethod
    def of(cls, size: Size, scale: Scale, spec: ViewSpec) -> Shown:
        """A picture of (height, width) pixels. Raises `MvlmError` for a scale that the model's views do not allow."""
        canvas, views, tokens = spec.canvas(size, scale), spec.views(size, scale), spec.tokens(scale)
        if spec.stitching is None:
            text = spec.marks.around(canvas, spec.image_token * tokens)
            return cls(views, tokens, text, None, tokens * len(views))
        stitch = stitched(canvas, tokens, size, spec.stitching)
        count = len(stitch.sources)
        return cls(views, tokens, spec.image_token * count, stitch, count)


def of_clip(count: int, scale: Scale, one: Shown, words: ClipWords, timing: Timing) -> Shown:
    """A clip of so many frames at a scale, each as `one`, its overview alone, is shown, between the family's words."""
    views = frames_of(count, scale)
    return of_frames(views, one, *words_around(words, [number_of(view, count) for view in views], timing))


def of_frames(views: Sequence[View], one: Shown, before: Sequence[str] = (), behind: str = "") -> Shown:
    """Frames of a clip one after the other, each as `one` is shown, with words before each, and behind the last."""
    many = [one] * len(views)
    text = "".join(words + one.text for words in before or [""] * len(views)) + behind
    return Shown(list(views), one.tokens, text, joined(many), one.num_placeholders * len(views))


def stitched(canvas: Canvas | None, tokens: int, size: Size, stitching: Stitching) -> Stitch:
    """LLaVA-NeXT's one grid of the tiles' tokens, behind the overview's: `pack_image_features` of transformers.

    The tokens are those of the overview, then those of the tiles row by row, each view's row by row. Cutting the
    padding away rounds on the grid of tokens, so a coarse grid keeps a share of it. Raises `MvlmError` for tokens of a
    view that are no square.
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise MvlmError(
            f"tiles of {tokens} tokens cannot be put together to a grid: name a square, as in {side * side}",
            code="scale-not-allowed",
        )
    overview = np.arange(tokens)
    if canvas is None:
        return _one_each(np.append(overview, NEWLINE))
    row, col = np.divmod(np.arange(canvas.rows * side * canvas.cols * side), canvas.cols * side)
    tile = row // side * canvas.cols + col // side
    numbers = tokens * (1 + tile) + row % side * side + col % side
    grid = _unpadded(numbers.reshape(canvas.rows * side, canvas.cols * side), size)
    height, width = grid.shape
    if stitching.most_tiles is not None and grid.size:
        ratio = math.sqrt(height * width / (stitching.most_tiles * side**2))
        if ratio > 1.1:
            return _shrunk(overview, grid, (max(int(height // ratio), 1), max(int(width // ratio), 1)))
    lines = np.concatenate([grid, np.full((height, 1), NEWLINE)], axis=1)
    return _one_each(np.concatenate([overview, lines.ravel()]))


def joined(shown: Sequence[Shown]) -> Stitch | None:
    """How the placeholders of several pictures follow from the tokens of all their views, one picture behind another.

    None where no picture is stitched.
    """
    parts = [one.stitch for one in shown if one.stitch]
    if not parts:
        return None
    taps, before = max(part.sources.shape[1] for part in parts), 0
    sources, weights = [], []
    for one, part in zip(shown, parts, strict=True):
        more = ((0, 0), (0, taps - part.sources.shape[1]))
        moved = np.where(part.sources == NEWLINE, NEWLINE, part.sources + before)
        sources.append(np.pad(moved, more, constant_values=NEWLINE))
        weights.append(np.pad(part.weights, more))
        before += one.tokens * len(one.views)
    return Stitch(np.concatenate(sources), np.concatenate(weights))


def _one_each(numbers: NDArray[np.int64]) -> Stitch:
    return Stitch(numbers[:, None], np.ones((len(numbers), 1), np.float32))


def _unpadded(grid: NDArray[np.int64], size: Size) -> NDArray[np.int64]:
    """transformers' `unpad_image`: the grid without the rows or columns that are padding alone."""
    height, width = grid.shape
    if size[1] / size[0] > width / height:
        kept = int(round(size[0] * (width / size[1]), 7))
        cut = (height - kept) // 2
        return grid[cut : height - cut]
    kept = int(round(size[1] * (height / size[0]), 7))
    cut = (width - kept) // 2
    return grid[:, cut : width - cut]


def _shrunk(overview: NDArray[np.int64], grid: NDArray[np.int64], to: Size) -> Stitch:
    """The grid resized bilinearly (corners not aligned, as torch's interpolate does), behind the overview's tokens."""
    (top, bottom, down), (left, right, across) = (_between(*ends) for ends in zip(grid.shape, to, strict=True))
    corners = [grid[np.ix_(y, x)] for y in (top, bottom) for x in (left, right)]
    shares = [np.outer(y, x) for y in (1 - down, down) for x in (1 - across, across)]
    lines = np.full((to[0], to[1] + 1, 4), NEWLINE)
    weights = np.zeros((to[0], to[1] + 1, 4), np.float32)
    lines[:, :-1], weights[:, :-1] = np.stack(corners, axis=-1), np.stack(shares, axis=-1)
    weights[:, -1, 0] = 1
    first = np.repeat(overview[:, None], 4, axis=1)
    alone = np.zeros((len(overview), 4), np.float32)
    alone[:, 0] = 1
    return Stitch(
        np.concatenate([first, lines.reshape(-1, 4)]), np.concatenate([alone, weights.reshape(-1, 4)])
    )  # fmt: skip


def _between(length: int, to: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each of `to` places in a line of `length`: its two neighbours there, and the share of the second."""
    places = np.maximum((np.arange(to) + 0.5) * (length / to) - 0.5, 0)
    before = places.astype(np.int64)
    return before, np.minimum(before + 1, length - 1), (places - before).astype(np.float32)
