"""The pixels of a picture's views: the overview and the tiles of a canvas, as the vision tower takes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .cutting import Canvas, Pinpoints, Size, View, fitted
from .spec import ViewSpec


def view_pixels(image: Image.Image, views: Sequence[View], spec: ViewSpec) -> NDArray[np.float32]:
    """An upright RGB picture's views, normalised: (len(views), 3, size_px, size_px) float32."""
    side, table = spec.size_px, _table(spec)
    squares: dict[View, Image.Image] = {}
    for canvas, members in _by_canvas(views).items():
        whole = _overview(image, spec) if canvas is None else _spread(image, canvas, spec)
        for view in members:
            left, top = view.col * side, view.row * side
            squares[view] = whole.crop((left, top, left + side, top + side))
    pixels = np.empty((len(views), 3, side, side), np.float32)
    for n, view in enumerate(views):
        values = np.asarray(squares[view])  # (side, side, 3) uint8
        for channel in range(3):
            pixels[n, channel] = table[channel][values[..., channel]]
    return pixels


def _table(spec: ViewSpec) -> NDArray[np.float32]:
    """What each of the 256 values of a channel becomes: (3, 256), scaled in double precision as transformers does."""
    scaled = (np.arange(256, dtype=np.float64) * spec.rescale).astype(np.float32)
    mean, std = (np.asarray(values, np.float32)[:, None] for values in (spec.mean, spec.std))
    return (scaled - mean) / std


def _by_canvas(views: Sequence[View]) -> dict[Canvas | None, list[View]]:
    found: dict[Canvas | None, list[View]] = defaultdict(list)
    for view in dict.fromkeys(views):
        found[view.canvas].append(view)
    return found


def _resized(image: Image.Image, size: Size, spec: ViewSpec) -> Image.Image:
    return image.resize((size[1], size[0]), Image.Resampling[spec.resample.upper()])


def _overview(image: Image.Image, spec: ViewSpec) -> Image.Image:
    size = (image.height, image.width)
    for step in [*spec.rule.before_overview(size, spec.size_px), (spec.size_px, spec.size_px)]:
        image = _resized(image, step, spec)
    return image


def _spread(image: Image.Image, canvas: Canvas, spec: ViewSpec) -> Image.Image:
    """The picture as large as the canvas: stretched, or in its shape with black around."""
    target = (canvas.rows * spec.size_px, canvas.cols * spec.size_px)
    if not isinstance(spec.rule, Pinpoints):
        if canvas.resized_first:
            image = _resized(image, canvas.resized_first, spec)
        return _resized(image, target, spec)
    size = fitted((image.height, image.width), target)
    spread = Image.new("RGB", (target[1], target[0]))
    spread.paste(_resized(image, size, spec), ((target[1] - size[1]) // 2, (target[0] - size[0]) // 2))
    return spread
