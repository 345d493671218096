"""A clip to look at: its middle frame now, other frames when a scale needs them, and none of a camera's twice."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MvlmError
from .frames import Frame
from .image import Picture, open_picture, preprocess
from .manifest import Manifest
from .views.clip import Clip, Frames, Video, number_of, times_of
from .views.cutting import OVERVIEW, View
from .views.pixels import view_pixels

Array = NDArray[np.float32]
# What is encoded of each frame of a camera, values (P, ·) and words (P, D), as long as somebody holds the frame.
Encoded = weakref.WeakKeyDictionary[Frame, tuple[Array, Array]]


class ClipSource:
    """One clip, its frames as the model of a bundle wants them."""

    def __init__(self, clip: Clip, frames: Sequence[Frame | None], manifest: Manifest) -> None:
        """`frames` are those of a camera, one for each of the clip's; none of another clip."""
        self._clip, self._frames = clip, frames
        self._spec, self._image = manifest.views, manifest.image
        self.count, self.size, self.timing = clip.count, clip.size, clip.timing
        self._name = os.urandom(16)

    def pixels(self, views: Sequence[View]) -> Array:
        """Frames as the tower takes them: (n, 3, size_px, size_px)."""
        opened = self._clip.at([number_of(view, self.count) for view in views])
        if self._spec is None:
            return np.stack([preprocess(frame, self._image) for frame in opened])
        return np.concatenate([view_pixels(frame, [OVERVIEW], self._spec) for frame in opened])

    def frame(self, view: View) -> Frame | None:
        """The camera's frame that a view is."""
        return self._frames[number_of(view, self.count)] if self._frames else None

    def name(self) -> bytes:
        """What tells it from every other clip; asked of again, a clip is another one."""
        return self._name


def read_clip(clip: Any, times: Sequence[float] | None) -> tuple[Clip, tuple[Frame, ...]]:
    """A clip of whatever `Runtime.look_clip` takes, and the frames of a camera among it.

    Raises `MvlmError` for no frames, for times of what is no video file, and for what is no clip.
    """
    if isinstance(clip, str | Path):
        return Video(Path(clip), None if times is None else times_of(list(times))), ()
    if times is not None:
        raise MvlmError("times are of a video file: give the frames at those times alone", code="bad-option")
    if isinstance(clip, Frames | Video):
        return clip, ()
    if not isinstance(clip, list | tuple):
        raise MvlmError(
            f"a clip is a {type(clip).__name__}: give the path of a video, or a list of frames", code="bad-picture"
        )
    cameras = tuple(frame for frame in clip if isinstance(frame, Frame))
    return Frames(tuple(map(_opened, clip))), cameras if len(cameras) == len(clip) else ()


def _opened(frame: Picture | Frame) -> Picture:
    return open_picture(frame.picture, order=frame.order) if isinstance(frame, Frame) else frame


def require_frames(manifest: Manifest) -> None:
    """Raise `MvlmError` for a bundle that shows one view of everything."""
    if not any(isinstance(scale, str) for scale in manifest.scales):
        raise MvlmError(
            f"this bundle has no scale of several frames ({', '.join(map(str, manifest.scales))}): export one with such"
            " scales, as in 9@4, or look at one frame",
            code="no-frames",
        )
