"""A clip: frames of one size, of which those that are shown are opened. Each frame is a view, as a tile is.

The overview of a clip is its middle frame, and a view says how many frames behind it another one stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from export.runtime.errors import MvlmError, shown
from export.runtime.frames import opencv
from export.runtime.image import Picture, open_picture

from .clip_words import Timing
from .cutting import View
from .scale import Scale


class Clip(Protocol):
    """What can be looked at frame by frame; `size` is (height, width) in pixels."""

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def count(self) -> int: ...

    @property
    def timing(self) -> Timing: ...

    def at(self, numbers: Sequence[int]) -> list[Image.Image]:
        """Some of its frames, upright and in RGB."""


@dataclass(frozen=True)
class Frames:
    """A clip as a list of pictures."""

    pictures: tuple[Picture, ...]

    def __post_init__(self) -> None:
        """Raises `MvlmError` for a clip without frames."""
        if not self.pictures:
            raise MvlmError("a clip without frames: name at least one", code="bad-picture")

    @property
    def size(self) -> tuple[int, int]:
        first = open_picture(self.pictures[0])
        return first.height, first.width

    @property
    def count(self) -> int:
        return len(self.pictures)

    @property
    def timing(self) -> Timing:
        """Unknown: nothing says how far apart they are."""
        return Timing()

    def at(self, numbers: Sequence[int]) -> list[Image.Image]:
        """Raises `MvlmError` for frames of several sizes."""
        opened = [open_picture(self.pictures[number]) for number in numbers]
        size = self.size
        for number, frame in zip(numbers, opened, strict=True):
            if (frame.height, frame.width) != size:
                raise MvlmError(
                    f"frames of several sizes: the first is {size[1]} x {size[0]}, and frame {number} is"
                    f" {frame.width} x {frame.height}: bring them to one",
                    code="bad-picture",
                )
        return opened


@dataclass(frozen=True)
class Video:
    """A clip in a file that OpenCV reads: all of its frames, or those at stated `times` in seconds."""

    path: Path
    times: tuple[float, ...] | None = None

    @property
    def size(self) -> tuple[int, int]:
        capture, cv2 = self._opened()
        try:
            return int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        finally:
            capture.release()

    @property
    def count(self) -> int:
        return len(self.times) if self.times is not None else self._told()[0]

    @property
    def timing(self) -> Timing:
        count, rate = self._told()
        numbers = None if self.times is None else tuple(round(time * rate) for time in self.times)
        return Timing(rate, numbers, count / rate)

    def at(self, numbers: Sequence[int]) -> list[Image.Image]:
        """Raises `MvlmError` for a time behind the end, and for a file that ends before it says."""
        count, rate = self._told()
        wanted = list(numbers) if self.times is None else [round(self.times[number] * rate) for number in numbers]
        if self.times is not None and max(wanted) >= count:
            raise MvlmError(
                f"{self.path} has no frame at {max(self.times):g} s: it is {count / rate:.3g} s long",
                code="bad-picture",
            )
        found = self._read(set(wanted))
        if missing := sorted(set(wanted) - set(found)):
            raise MvlmError(
                f"{self.path} says that it has {count} frames, and frame {missing[0]} cannot be read: write it anew",
                code="bad-picture",
            )
        return [found[number] for number in wanted]

    def _read(self, wanted: set[int]) -> dict[int, Image.Image]:
        """One after the other, as seeking is not exact in every format."""
        capture, cv2 = self._opened()
        found: dict[int, Image.Image] = {}
        try:
            for number in range(max(wanted) + 1):
                if not capture.grab():
                    break
                if number in wanted:
                    read, array = capture.retrieve()
                    if read:
                        found[number] = Image.fromarray(cv2.cvtColor(array, cv2.COLOR_BGR2RGB))
        finally:
            capture.release()
        return found

    def _told(self) -> tuple[int, float]:
        """How many frames there are, and how many a second."""
        capture, cv2 = self._opened()
        try:
            count, rate = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), float(capture.get(cv2.CAP_PROP_FPS))
        finally:
            capture.release()
        if count < 1 or not rate > 0:
            raise MvlmError(f"{self.path} is a clip without frames: write it anew", code="bad-picture")
        return count, rate

    def _opened(self) -> tuple[Any, Any]:
        if not self.path.is_file():
            raise MvlmError(f"there is no video {self.path}: check the path", code="no-picture")
        cv2 = opencv()
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise MvlmError(f"{self.path} is no video that OpenCV reads", code="bad-picture")
        return capture, cv2


def overview_picture(picture: Any) -> Image.Image:
    """The picture, or the middle frame of a clip, upright and in RGB."""
    return picture.at([picture.count // 2])[0] if is_clip(picture) else open_picture(picture)


def is_clip(picture: object) -> bool:
    return isinstance(picture, Frames | Video)


def frames_of(count: int, scale: Scale) -> list[View]:
    """The frames of a clip at a scale, in their order: `m` the middle one alone, `m@n` up to n of them, one from the
    middle of each of n equal parts, and `m@native` all."""
    shown_frames = 1 if scale.tiles == 0 else count if scale.tiles is None else min(scale.tiles, count)
    numbers = [(2 * n + 1) * count // (2 * shown_frames) for n in range(shown_frames)]
    return [View(frame=number - count // 2) for number in numbers]


def number_of(view: View, count: int) -> int:
    """Which frame of a clip a view is."""
    return count // 2 + view.frame


def times_of(value: object) -> tuple[float, ...]:
    """Times in seconds. Raises `MvlmError` for anything else."""
    if not isinstance(value, list | tuple) or not value:
        raise MvlmError(f"the times of a clip are {shown(value)}: give a list of seconds")
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one < 1e9 for one in value):
        raise MvlmError(f"the times of a clip are {shown(value)}: give seconds from 0 up")
    return tuple(float(one) for one in value)
