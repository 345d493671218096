"""Where a picture lies, as something small that can be hashed: its pixels are read when they are needed. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class PictureSource(Protocol):
    """A picture of a data set. Two sources with the same `key` are the same picture, and equal."""

    @property
    def key(self) -> str: ...

    def read(self) -> Path | bytes:
        """What `export.runtime.image.preprocess` takes: a path, or the encoded bytes."""


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
