"""What a report shows of the test rows, in whatever format they came: questions, and small pictures. No torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from export.runtime.views.clip import overview_picture
from mvlm_core.data.row import Row

# A report has room for a dozen; of more pictures, so many are kept, evenly spread.
_MOST_PICTURES = 400
_LONGEST_SIDE_PX = 256
# What is drawn this small has hard edges, which JPEG would blur.
_SMALL_SIDE_PX = 128


def asked_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The test rows as asked.parquet holds them: each says which row holds its picture, and the first about it does."""
    test = [row for row in rows if row.split == "test"]
    first: dict[str, Row] = {}
    for row in test:
        first.setdefault(row.image.key, row)
    holders = list(first.values())
    step = max(1, -(-len(holders) // _MOST_PICTURES))
    kept = {row.id for row in holders[::step]}
    return [
        {"id": row.id, "question": row.question, "picture_of": first[row.image.key].id,
         "picture": small_picture(row) if row.id in kept else None}
        for row in test
    ]  # fmt: skip


def small_picture(row: Row) -> bytes:
    """The picture of a row as a PNG or JPEG file of at most `_LONGEST_SIDE_PX` to a side."""
    picture = overview_picture(row.image.read())
    picture.thumbnail((_LONGEST_SIDE_PX, _LONGEST_SIDE_PX), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    picture.save(data, "PNG" if max(picture.size) <= _SMALL_SIDE_PX else "JPEG", quality=85)
    return data.getvalue()
