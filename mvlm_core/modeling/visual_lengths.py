"""How many tokens pictures are at a scale, marks and newlines counted, known from their sizes alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from PIL import Image

from export.runtime.views.cutting import Size
from export.runtime.views.scale import Scale, ScaleWord

from .processing import MvlmProcessor

# EXIF's tag, and its values from which on a picture lies on its side.
_ORIENTATION, _FIRST_ON_ITS_SIDE = 0x0112, 5


class Readable(Protocol):
    """A picture of a row: `mvlm_core.data.pictures.PictureSource`."""

    def read(self) -> Path | bytes: ...


class VisualLengths:
    """The tokens of pictures for one processor; of a picture no more is read than its size."""

    def __init__(self, processor: MvlmProcessor) -> None:
        self.processor, self._one = processor, lru_cache(maxsize=100_000)(self._length)

    def of(self, pictures: Sequence[Readable | None], scale: ScaleWord) -> int:
        """All of them together. Raises `MvlmError` for a scale that the model's views do not allow."""
        if self.processor.image_processor.views is None:
            return self._one(None, scale) * len(pictures)
        return sum(self._one(_size(picture.read()) if picture else None, scale) for picture in pictures)

    def finest(self, pictures: Sequence[Readable | None], scales: Iterable[ScaleWord]) -> tuple[ScaleWord, int]:
        """The scale that takes most tokens, and how many."""
        lengths = {scale: self.of(pictures, scale) for scale in scales}
        return max(lengths.items(), key=lambda told: (told[1], Scale.parse(told[0]).order))

    def _length(self, size: Size | None, scale: ScaleWord) -> int:
        shown = self.processor.image_processor.shown(size or (1, 1), Scale.parse(scale))
        return len(self.processor.picture_ids(shown))


def _size(picture: Path | bytes) -> Size:
    """Height and width of a picture once it stands upright; (1, 1) of one that cannot be read, which others tell."""
    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
            size = (opened.height, opened.width)
            on_its_side = opened.getexif().get(_ORIENTATION, 1) >= _FIRST_ON_ITS_SIDE
    except (OSError, ValueError, SyntaxError):
        return (1, 1)
    return size[::-1] if on_its_side else size
