"""Where a picture lies, as something small that can be hashed: its pixels are read when they are needed. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from export.runtime.artefact import sha256_file, sha256_json

_READ_AT_ONCE = 8


class PictureSource(Protocol):
    """A picture of a data set, or a clip (`clips`). Two sources with the same `key` are the same, and equal."""

    @property
    def key(self) -> str: ...

    def read(self) -> Any:
        """What `export.runtime.image.preprocess` takes: a path, or the encoded bytes; of a clip, what opens it."""


@dataclass(frozen=True)
class PictureFile:
    """A picture in a file of its own."""

    path: Path

    @property
    def key(self) -> str:
        return os.path.normpath(self.path)

    def read(self) -> Path:
        return self.path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class PictureBytes:
    """A picture that is held in memory."""

    key: str
    data: bytes = field(compare=False, repr=False)

    def read(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return f"picture {self.key[:12]}"


def _files(picture: Any) -> Iterator[Path]:
    """The files that a picture, or a clip and its frames, lie in."""
    if path := getattr(picture, "path", None):
        yield path
    for frame in getattr(picture, "sources", ()):
        yield from _files(frame)


def pictures_sha256(pictures: Iterable[PictureSource]) -> str:
    """The hash of what those of some pictures hold that are files, in their order, wherever they lie by now.

    Every file is read, once. What rows hold themselves is a part of their own file's hash.
    """
    files = dict.fromkeys(file for picture in pictures for file in _files(picture))
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:  # it waits for the disk most of the time
        return sha256_json(list(pool.map(sha256_file, files)))
