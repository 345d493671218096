"""Where a picture lies, as something small that can be hashed: its pixels are read when they are needed. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from export.runtime.artefact import sha256_json


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


def picture_sizes_sha256(pictures: Iterable[PictureSource]) -> str:
    """The hash of how large those of some pictures are that are files, in their order, wherever they lie by now.

    Their bytes are not read: of a large data set that takes minutes. A picture that was changed has another size as a
    rule; what rows hold themselves is a part of their file's hash.
    """
    files = dict.fromkeys(picture.path for picture in pictures if isinstance(picture, PictureFile))
    return sha256_json([file.stat().st_size for file in files])
