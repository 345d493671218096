"""How many tokens pictures are at a scale, marks and newlines counted, known from their sizes alone."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

from PIL import Image

from export.runtime.views.cutting import Size
from export.runtime.views.scale import Scale, ScaleWord

from .processing import MvlmProcessor

# EXIF's tag, and its values from which on a picture lies on its side.
_ORIENTATION, _FIRST_ON_ITS_SIDE = 0x0112, 5


class Readable(Protocol):
    """A picture of a row: `mvlm_core.data.pictures.PictureSource`; a clip says its number of `frames` too."""

    def read(self) -> Any: ...


class VisualLengths:
    """The tokens of pictures for one processor; of a picture no more is read than its size."""

    def __init__(self, processor: MvlmProcessor) -> None:
        self.processor, self._one = processor, lru_cache(maxsize=100_000)(self._length)
        self._size_of_file = lru_cache(maxsize=100_000)(_size)  # each is asked for at every scale and of every row

    def of(self, pictures: Sequence[Readable | None], scale: ScaleWord) -> int:
        """All of them together. Raises `MvlmError` for a scale that the model's views do not allow."""
        return sum(self._of_one(picture, scale) for picture in pictures)

    def finest(self, pictures: Sequence[Readable | None], scales: Iterable[ScaleWord]) -> tuple[ScaleWord, int]:
        """The scale that takes most tokens, and how many."""
        lengths = {scale: self.of(pictures, scale) for scale in scales}
        return max(lengths.items(), key=lambda told: (told[1], Scale.parse(told[0]).order))

    def _of_one(self, picture: Readable | None, scale: ScaleWord) -> int:
        frames = getattr(picture, "frames", None)  # of a clip
        if picture is None or frames or self.processor.image_processor.views is None:
            return self._one(None, frames, scale)
        return self._one(self._size(picture), None, scale)

    def _size(self, picture: Readable) -> Size:
        held = picture.read()
        return self._size_of_file(held) if isinstance(held, Path) else _size(cast(bytes, held))

    def _length(self, size: Size | None, frames: int | None, scale: ScaleWord) -> int:
        images = self.processor.image_processor
        if frames:
            shown = images.shown_clip(frames, Scale.parse(scale))
        else:
            shown = images.shown(size or (1, 1), Scale.parse(scale))
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
