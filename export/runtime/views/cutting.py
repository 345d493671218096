"""How a picture is cut into tiles: the rules of the families that are deployed, and where a smaller picture stops.

Every rule answers twice. `native` is what the family's own processor does, its enlarging of small pictures included.
`within` takes at most so many tiles, and shows no more pixels than the picture has: a small picture has no tiles.

Sizes are (height, width) in pixels; a view is a square of side `size_px`. The rules are those of transformers' image
processors (models/llava_next, got_ocr2 and smolvlm, image_processing_pil_*.py), number for number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Size = tuple[int, int]

# Above this side SmolVLM's processor makes no picture (its MAX_IMAGE_SIZE).
_SMOLVLM_LARGEST = 4096


@dataclass(frozen=True)
class Canvas:
    """A picture spread over `rows` x `cols` tiles; `resized_first` is a size that it passes through before."""

    rows: int
    cols: int
    resized_first: Size | None = None

    @property
    def tiles(self) -> int:
        return self.rows * self.cols


@dataclass(frozen=True)
class View:
    """One square of a picture that the vision tower encodes: a tile of a canvas, or without one the overview.

    Of a clip it is a frame, `frame` of them behind the middle one, which is the clip's overview. Two scales that show
    the same tile name the same view, so it is encoded once.
    """

    canvas: Canvas | None = None
    row: int = 0
    col: int = 0
    frame: int = 0


OVERVIEW = View()


def tiles_of(canvas: Canvas) -> list[View]:
    """The tiles of a canvas, row by row."""
    return [View(canvas, row, col) for row in range(canvas.rows) for col in range(canvas.cols)]


class _Rule:
    fit = "stretch"  # how a picture fills its canvas; pad: it keeps its shape, in the middle of black

    def before_overview(self, size: Size, size_px: int) -> list[Size]:
        """The sizes that a picture passes through on its way to the overview."""
        return []


@dataclass(frozen=True)
class Whole(_Rule):
    """No tiles: the overview is all there is."""

    kind = "whole"

    def native(self, size: Size, size_px: int) -> Canvas | None:
        return None

    def within(self, size: Size, size_px: int, tiles: int) -> Canvas | None:
        return None


@dataclass(frozen=True)
class ClosestAspect(_Rule):
    """InternVL: the grid whose shape is closest to the picture's, which is stretched to fill it; a single tile is none.

    `least` and `most` are the numbers of tiles that it may have.
    """

    least: int
    most: int
    kind = "closest_aspect"

    def native(self, size: Size, size_px: int) -> Canvas | None:
        rows, cols = _closest(size, size_px, _grids(self.least, self.most))
        return Canvas(rows, cols) if rows * cols > 1 else None

    def within(self, size: Size, size_px: int, tiles: int) -> Canvas | None:
        fitting = [(r, c) for r, c in _grids(2, tiles) if r * c * size_px**2 <= size[0] * size[1]]
        return Canvas(*_closest(size, size_px, fitting)) if fitting else None


@dataclass(frozen=True)
class Pinpoints(_Rule):
    """LLaVA-NeXT: of the grids named, the one that keeps most of the picture's pixels and wastes fewest.

    The picture keeps its shape, and black fills what is left of the grid.
    """

    grids: tuple[tuple[int, int], ...]
    kind = "pinpoints"
    fit = "pad"

    def native(self, size: Size, size_px: int) -> Canvas | None:
        return Canvas(*_least_waste(size, size_px, self.grids))

    def within(self, size: Size, size_px: int, tiles: int) -> Canvas | None:
        fitting = []
        for rows, cols in self.grids:
            pixels = _fitted_pixels(size, (rows * size_px, cols * size_px))
            if rows * cols <= tiles and size_px**2 < pixels <= size[0] * size[1]:
                fitting.append((rows, cols))
        return Canvas(*_least_waste(size, size_px, fitting)) if fitting else None


@dataclass(frozen=True)
class LongestEdge(_Rule):
    """SmolVLM: the longer side becomes `longest` pixels, then each side the next multiple of a tile.

    Without `splitting` the overview is all there is.
    """

    longest: int
    splitting: bool = True
    kind = "longest_edge"

    def native(self, size: Size, size_px: int) -> Canvas | None:
        return self._canvas(size, size_px, self.longest) if self.splitting else None

    def within(self, size: Size, size_px: int, tiles: int) -> Canvas | None:
        for along in range(min(max(size) // size_px, tiles), 1, -1):
            canvas = self._canvas(size, size_px, along * size_px)
            if canvas and canvas.tiles <= tiles and canvas.tiles * size_px**2 <= math.prod(size):
                return canvas
        return None

    def before_overview(self, size: Size, size_px: int) -> list[Size]:
        first, canvas = to_longest_edge(size, self.longest), self.native(size, size_px)
        return [first, (canvas.rows * size_px, canvas.cols * size_px)] if canvas else [first]

    def _canvas(self, size: Size, size_px: int, longest: int) -> Canvas | None:
        first = to_longest_edge(size, longest)
        rows, cols = _multiples(first, size_px)
        return Canvas(rows, cols, first) if rows * cols > 1 else None


Rule = Whole | ClosestAspect | Pinpoints | LongestEdge


def rule_to_json(rule: Rule) -> dict[str, Any]:
    return {"kind": rule.kind} | {name: getattr(rule, name) for name in rule.__dataclass_fields__}


def rule_from_json(value: dict[str, Any]) -> Rule:
    """Raises `KeyError`, `TypeError` or `ValueError` for what is no rule."""
    kind = value["kind"]
    if kind == "pinpoints":
        return Pinpoints(tuple((int(rows), int(cols)) for rows, cols in value["grids"]))
    if kind == "closest_aspect":
        return ClosestAspect(int(value["least"]), int(value["most"]))
    if kind == "longest_edge":
        return LongestEdge(int(value["longest"]), bool(value["splitting"]))
    if kind == "whole":
        return Whole()
    raise ValueError(f"no rule {kind!r}")


def to_longest_edge(size: Size, longest: int) -> Size:
    """SmolVLM's size of a picture whose longer side becomes `longest`: the other is even, and at least 1."""
    height, width = size
    shape = width / height
    if width >= height:
        width, height = longest, int(longest / shape)
        height += height % 2
    else:
        height, width = longest, int(longest * shape)
        width += width % 2
    return _below(max(height, 1), max(width, 1), _SMOLVLM_LARGEST)


def _below(height: int, width: int, most: int) -> Size:
    shape = width / height
    if width >= height and width > most:
        width, height = most, int(most / shape)
    elif height > width and height > most:
        height, width = most, int(most * shape)
    return max(height, 1), max(width, 1)


def _multiples(size: Size, size_px: int) -> tuple[int, int]:
    """Rows and columns of tiles that a picture is stretched to."""
    height, width = size
    shape = width / height
    if width >= height:
        cols = math.ceil(width / size_px)
        rows = math.ceil(int(cols * size_px / shape) / size_px)
    else:
        rows = math.ceil(height / size_px)
        cols = math.ceil(int(rows * size_px * shape) / size_px)
    return rows, cols


@lru_cache(maxsize=64)
def _grids(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of every grid of `least` to `most` tiles, the small ones first, in the order of got_ocr2."""
    pairs = [(cols, rows) for cols in range(1, most + 1) for rows in range(1, most // cols + 1) if cols * rows >= least]
    return tuple((rows, cols) for cols, rows in sorted(pairs, key=math.prod))


def _closest(size: Size, size_px: int, grids: Iterable[tuple[int, int]]) -> tuple[int, int]:
    height, width = size
    shape, area = width / height, width * height
    best, least = (1, 1), math.inf
    for rows, cols in grids:
        away = abs(shape - cols / rows)
        if away < least:
            best, least = (rows, cols), away
        elif away == least and area > 0.5 * size_px * size_px * cols * rows:  # more tiles, until they enlarge twofold
            best = (rows, cols)
    return best


def fitted(size: Size, canvas_px: Size) -> Size:
    """The size of a picture that keeps its shape and fills a canvas in one direction, as LLaVA-NeXT rounds it."""
    across, down = canvas_px[1] / size[1], canvas_px[0] / size[0]
    if across < down:
        return min(math.ceil(size[0] * across), canvas_px[0]), canvas_px[1]
    return canvas_px[0], min(math.ceil(size[1] * down), canvas_px[1])


def _fitted_pixels(size: Size, canvas_px: Size) -> int:
    scale = min(canvas_px[1] / size[1], canvas_px[0] / size[0])
    return int(size[1] * scale) * int(size[0] * scale)


def _least_waste(size: Size, size_px: int, grids: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """transformers' `select_best_resolution`, in tiles."""
    best, most, least = (1, 1), 0, math.inf
    for rows, cols in grids:
        canvas_px = (rows * size_px, cols * size_px)
        kept = min(_fitted_pixels(size, canvas_px), size[0] * size[1])
        wasted = math.prod(canvas_px) - kept
        if kept > most or (kept == most and wasted < least):
            best, most, least = (rows, cols), kept, wasted
    return best
