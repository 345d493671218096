"""How many tokens pictures are at a scale, marks and newlines counted, known from their sizes alone."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

from PIL import Image

from export.runtime.views.clip_words import Timing
from export.runtime.views.cutting import Size
from export.runtime.views.scale import Scale, ScaleWord

from .processing import MvlmProcessor

_MOST_TILES = 64
# EXIF's tag, and its values from which on a picture lies on its side.
_ORIENTATION, _FIRST_ON_ITS_SIDE = 0x0112, 5


class Readable(Protocol):
    """A picture of a row: `mvlm_core.data.pictures.PictureSource`; a clip says its number of `frames` too,
    and that of a file its `timing`."""

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

    def that_fits(self, pictures: Sequence[Readable | None], scale: ScaleWord, room: int) -> ScaleWord | None:
        """The scale with as many tokens a view and the most tiles or frames that `room` tokens hold, or the overview
        alone; None where not even that does, or where `scale` asks for no more.
        """
        asked, spec = Scale.parse(scale), self.processor.image_processor.view_spec
        if asked.tiles == 0:
            return None
        tokens = spec.tokens(asked) if spec else asked.tokens
        frames = max((getattr(picture, "frames", None) or 0 for picture in pictures), default=0)
        bound = frames or _MOST_TILES
        most = bound if asked.tiles is None else min(asked.tiles, bound)

        def length(tiles: int) -> int:
            return self.of(pictures, Scale(tokens, tiles).word)

        if frames:
            found = bisect_right(range(most + 1), room, key=length) - 1
        else:  # where more tiles are allowed, fewer of them may fit a picture's shape
            found = max((n for n in range(most + 1) if length(n) <= room), key=length, default=-1)
        return Scale(tokens, found).word if found >= 0 else None

    def _of_one(self, picture: Readable | None, scale: ScaleWord) -> int:
        views, frames = self.processor.image_processor.views, getattr(picture, "frames", None)  # of a clip
        if frames:
            timed = (views or {}).get("clip_words") == "timed"
            timing = getattr(picture, "timing", None) if timed else None
            return self._one(None, (frames, timing or Timing()), scale)
        if picture is None or views is None:
            return self._one(None, None, scale)
        return self._one(self._size(picture), None, scale)

    def _size(self, picture: Readable) -> Size:
        held = picture.read()
        return self._size_of_file(held) if isinstance(held, Path) else _size(cast(bytes, held))

    def _length(self, size: Size | None, clip: tuple[int, Timing] | None, scale: ScaleWord) -> int:
        images = self.processor.image_processor
        if clip:
            shown = images.shown_clip(clip[0], Scale.parse(scale), clip[1])
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
