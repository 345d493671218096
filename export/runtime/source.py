"""A picture to look at: its overview now, and other views of it when they are wanted.

What a caller may change later, an array or an open picture, is copied; of encoded bytes no more is kept than they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .image import Order, Picture, open_picture, preprocess
from .manifest import Manifest
from .views.cutting import OVERVIEW, View
from .views.pixels import view_pixels

Array = NDArray[np.float32]


class Source:
    """One picture, opened as the model of a bundle wants it."""

    def __init__(self, picture: Picture, order: Order, manifest: Manifest, most_pixels: int | None = None) -> None:
        """Raises `MvlmError` for what is no picture, or has more than `most_pixels`."""
        self._spec, self._image = manifest.views, manifest.image
        self._opened: Image.Image | None = self._open(picture, order, most_pixels)
        self.size = (self._opened.height, self._opened.width)
        self._bytes = picture if isinstance(picture, bytes) else None
        self._most_pixels = most_pixels
        self._shared = isinstance(picture, Image.Image | np.ndarray)

    def overview(self) -> Array:
        """(3, size_px, size_px); what the tiles need is kept, and nothing else."""
        image, self._opened = self._again(), None
        if self._spec is None:
            return preprocess(image, self._image)
        if self._bytes is None:
            self._opened = image.copy() if self._shared else image
        pixels: Array = view_pixels(image, [OVERVIEW], self._spec)[0]
        return pixels

    def pixels(self, views: Sequence[View]) -> Array:
        """Views as the tower takes them: (n, 3, size_px, size_px)."""
        assert self._spec is not None  # nobody asks for views where there are none
        return view_pixels(self._again(), views, self._spec)

    def name(self) -> bytes:
        """What tells it from every other picture, of the same overview too."""
        image = self._again()
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()

    def _again(self) -> Image.Image:
        if self._opened is not None:
            return self._opened
        assert self._bytes is not None
        return self._open(self._bytes, "rgb", self._most_pixels)

    def _open(self, picture: Picture, order: Order, most_pixels: int | None) -> Image.Image:
        return open_picture(picture, order=order, most_pixels=most_pixels, on_white=self._spec is not None)
