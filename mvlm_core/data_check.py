"""Everything that can be known of a data set before a run is spent on it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable

from export.runtime.errors import MvlmError
from export.runtime.image import open_picture

from .pictures import PictureSource
from .row import Row


def check_pictures(rows: list[Row], progress: Callable[[int], None]) -> list[str]:
    """Open every picture: the faults of those that cannot be read, and of equal pictures in several splits."""
    faults = []
    first_row: dict[PictureSource, Row] = {}
    for row in rows:
        for picture in row.pictures:
            first_row.setdefault(picture, row)
    splits_of: dict[str, dict[str, PictureSource]] = defaultdict(dict)
    for picture, row in first_row.items():
        try:
            pixels = open_picture(picture.read())
            splits_of[hashlib.sha256(pixels.tobytes()).hexdigest()].setdefault(row.split, picture)
        except MvlmError as error:
            faults.append(f"id {row.id}: {error}")
        progress(1)
    for same in splits_of.values():
        if len(same) > 1:
            faults.append("the same picture in several splits: " + ", ".join(f"{p} ({s})" for s, p in same.items()))
    return faults
