"""Pictures from wherever they come: a file, a folder, a video, a camera. Videos and cameras are read by OpenCV."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MvlmError
from .image import Order, Picture

PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture, what to call it, and when it was taken (`time.monotonic`; files are taken when they are read).

    Each is one of its own: what is encoded of it is kept as long as somebody holds it.
    """

    name: str
    picture: Picture
    order: Order
    taken_s: float

    @property
    def age_ms(self) -> float:
        return 1000 * (time.monotonic() - self.taken_s)


def frames(source: str, every_s: float = 1.0) -> Iterator[Frame]:
    """A camera's number, or the path of a picture, a folder of pictures, or a video (a frame every `every_s` seconds).

    A camera never ends, and gives its latest frame whenever one is asked for. Raises `MvlmError` for a source that is
    none of these.
    """
    path = Path(source)
    if source.isdecimal():
        with LatestFrame(int(source)) as camera:
            while True:
                yield camera.next()
    elif path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not found:
            raise MvlmError(f"{path} holds no pictures ({', '.join(sorted(PICTURES))})", code="no-picture")
        for file in found:
            yield Frame(file.name, file, "rgb", time.monotonic())
    elif path.suffix.lower() in VIDEOS:
        yield from _video(path, every_s)
    else:
        yield Frame(path.name, path, "rgb", time.monotonic())


def _video(path: Path, every_s: float) -> Iterator[Frame]:
    if not path.is_file():
        raise MvlmError(f"there is no video {path}: check the path", code="no-picture")
    capture = _open(str(path))
    try:
        step = max(1, round(every_s * (capture.get(opencv().CAP_PROP_FPS) or 1)))
        number = 0
        while capture.grab():
            if number % step == 0:
                read, array = capture.retrieve()
                if read:
                    yield Frame(f"{path.name} frame {number}", array, "bgr", time.monotonic())
            number += 1
    finally:
        capture.release()


class LatestFrame:
    """A camera whose latest frame wins: one slot that a thread keeps filling, so that nobody waits for an old frame."""

    def __init__(self, camera: int | str, oldest_ms: float = 1000.0) -> None:
        """`oldest_ms`: an older frame is not given out; the camera has then stopped. Raises `MvlmError`: no camera."""
        self._capture = _open(camera)
        self._oldest_ms = oldest_ms
        self._slot: Frame | None = None
        self._changed = threading.Condition()
        self._ended = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def next(self, wait_s: float = 5.0) -> Frame:
        """The latest frame that was not given out yet. Raises `MvlmError` when none comes within `wait_s`."""
        with self._changed:
            fresh = self._changed.wait_for(lambda: self._ended or self._slot is not None, wait_s)
            frame, self._slot = self._slot, None
        if not fresh or frame is None or frame.age_ms > self._oldest_ms:
            raise MvlmError("the camera gives no frames any more: check that it is plugged in", code="no-picture")
        return frame

    def close(self) -> None:
        with self._changed:
            self._ended = True
        self._thread.join()
        self._capture.release()

    def __enter__(self) -> LatestFrame:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill(self) -> None:
        number = 0
        while not self._ended:
            read, array = self._capture.read()
            with self._changed:
                if not read:
                    self._ended = True
                else:
                    self.dropped += self._slot is not None
                    self._slot = Frame(f"frame {number}", array, "bgr", time.monotonic())
                self._changed.notify_all()
            number += 1


class LatestClip:
    """The last `count` frames of a camera, taken at least `every_s` seconds apart: what `Runtime.look_clip` looks at.

    A frame that is in several clips is the same one, and is encoded once.
    """

    def __init__(self, camera: int | str, count: int, every_s: float = 0.0, oldest_ms: float = 1000.0) -> None:
        """Raises `MvlmError`: no camera, or no frames asked for."""
        if count < 1:
            raise MvlmError(f"a clip of {count} frames has none: ask for at least 1", code="bad-option")
        self._frames: deque[Frame] = deque(maxlen=count)
        self._every_s = every_s
        self._camera = LatestFrame(camera, oldest_ms)

    def next(self, wait_s: float = 5.0) -> list[Frame]:
        """The frames, the latest one last, which was not given out yet; fewer until the camera has given so many.

        Raises `MvlmError` when none comes within `wait_s`; those before stay.
        """
        earliest = self._frames[-1].taken_s + self._every_s if self._frames else 0.0
        while (frame := self._camera.next(wait_s)).taken_s < earliest:
            pass
        self._frames.append(frame)
        return list(self._frames)

    def close(self) -> None:
        self._camera.close()

    def __enter__(self) -> LatestClip:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(source: int | str) -> Any:
    capture = opencv().VideoCapture(source)
    if not capture.isOpened():
        what = f"camera {source}" if isinstance(source, int) else source
        raise MvlmError(f"{what} cannot be opened: check that it is there, and that nobody else reads it",
                        code="no-picture")  # fmt: skip
    return capture


def opencv() -> Any:
    """Raises `MvlmError` that names the extra, where OpenCV is not installed."""
    try:
        import cv2
    except ModuleNotFoundError:
        raise MvlmError('a camera or a video needs OpenCV: pip install "mvlm[camera]"', code="no-opencv") from None
    return cv2
