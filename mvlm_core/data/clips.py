"""Clips in rows: `video` is a file, a list of frames, or a file with stated times. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from export.runtime.artefact import sha256_json
from export.runtime.errors import MvlmError
from export.runtime.views.clip import Frames, Video, times_of
from export.runtime.views.clip_words import Timing

from .pictures import PictureSource
from .values import shown


@dataclass(frozen=True)
class ClipFrames:
    """A clip whose frames are pictures of their own."""

    sources: tuple[PictureSource, ...]

    @property
    def key(self) -> str:
        return sha256_json([source.key for source in self.sources])

    @property
    def frames(self) -> int:
        return len(self.sources)

    def read(self) -> Frames:
        return Frames(tuple(source.read() for source in self.sources))

    def __str__(self) -> str:
        return f"clip of {len(self.sources)} frames from {self.sources[0]}"


@dataclass(frozen=True)
class ClipFile:
    """A clip in a file, of all frames or at stated times in seconds."""

    path: Path
    times: tuple[float, ...] | None = None

    @property
    def key(self) -> str:
        return sha256_json([str(self.path), self.times])

    @property
    def frames(self) -> int:
        """How many there are. Raises `MvlmError` for a file that is no clip."""
        return _count(self.read())

    @property
    def timing(self) -> Timing:
        """When its frames were taken. Raises `MvlmError` for a file that is no clip."""
        return _timing(self.read())

    def read(self) -> Video:
        return Video(self.path, self.times)

    def __str__(self) -> str:
        return str(self.path)


@lru_cache(maxsize=10_000)
def _count(video: Video) -> int:
    return video.count


@lru_cache(maxsize=10_000)
def _timing(video: Video) -> Timing:
    return video.timing


@dataclass(frozen=True)
class HeldClip:
    """What stands at `video` in a row."""

    held: Any

    def parts(self) -> tuple[list[Any], tuple[float, ...] | None]:
        """The frames, or one file, and the times that are stated. Raises `MvlmError` for what is no clip."""
        held, times = self.held, None
        if isinstance(held, dict):
            times = None if held.get("times") is None else times_of(held["times"])
            held = held.get("path") if held.get("frames") is None else held["frames"]
        if isinstance(held, list | tuple):
            if not held:
                raise MvlmError("a clip without frames: name at least one")
            if times is not None:
                raise MvlmError("a clip of listed frames has no times: list the frames that are meant")
            return list(held), None
        if not isinstance(held, str) or not held:
            raise MvlmError(f"video is {shown(self.held)}: give a file, or a list of frames")
        return [held], times

    @property
    def listed(self) -> bool:
        held = self.held
        return isinstance(held, list | tuple) or (isinstance(held, dict) and held.get("frames") is not None)


def column_with_clip(video: Any, pictures: Sequence[Any]) -> list[Any]:
    """A row's clip in the place of its pictures. Raises `MvlmError` for a row that has both."""
    if pictures:
        raise MvlmError("it holds a clip and pictures: a row has one of them")
    return [HeldClip(video)]
