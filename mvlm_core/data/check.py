"""Everything that can be known of a data set before a run is spent on it."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from export.runtime.errors import MvlmError
from export.runtime.image import open_picture, require_shape
from export.runtime.views.clip import is_clip
from export.runtime.views.scale import ScaleWord

from .pictures import PictureSource
from .row import Row

if TYPE_CHECKING:
    from mvlm_core.modeling.processing import MvlmProcessor


@dataclass
class PictureReport:
    """What came of opening pictures: faults, and what the library that read them warned of, each by its row."""

    faults: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)


def check_pictures(rows: list[Row], progress: Callable[[int], None]) -> PictureReport:
    """Open every picture. Faults are those that cannot be read, and equal pictures in several splits."""
    report = PictureReport()
    first_row: dict[PictureSource, Row] = {}
    for row in rows:
        for picture in row.pictures:
            first_row.setdefault(picture, row)
    splits_of: dict[str, dict[str, PictureSource]] = defaultdict(dict)
    for picture, row in first_row.items():
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                content = hashlib.sha256()
                for pixels in _opened(picture.read()):
                    require_shape(pixels)
                    content.update(pixels.tobytes())
                splits_of[content.hexdigest()].setdefault(row.split, picture)
            except MvlmError as error:
                report.faults.append(f"id {row.id}, {picture}: {str(error).removeprefix(f'{picture} ')}")
                warned.clear()  # the fault says it
        told = dict.fromkeys(" ".join(str(one.message).split()) for one in warned)
        report.warned += [f"id {row.id}, {picture}: {text}" for text in told]
        progress(1)
    for same in splits_of.values():
        if len(same) > 1:
            shown = ", ".join(f"{p} ({s})" for s, p in same.items())
            report.faults.append(f"the same picture in several splits: {shown}")
    return report


def _opened(held: Any) -> list[Image.Image]:
    """A picture, or every frame of a clip."""
    return held.at(range(held.count)) if is_clip(held) else [open_picture(held)]


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows at one scale: the middle row, the row that 95 % do not exceed, and the longest."""

    median: int
    most_rows: int
    longest: int
    longest_id: str


@dataclass
class TokenReport:
    """What the rows become as ids. `shortened` counts the rows whose text `max_tokens` cuts."""

    lengths: dict[ScaleWord, Lengths] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    shortened: int = 0


def check_tokens(
    rows: Sequence[Row],
    processor: MvlmProcessor,
    scales: Sequence[ScaleWord],
    max_tokens: int | None,
    progress: Callable[[int], None],
    *,
    kept: int | None = None,
    positions: int | None = None,
) -> TokenReport:
    """Encode every row. Faults are rows that the chat template refuses, rows with nothing supervised, and rows that
    do not fit into `max_tokens` at the finest scale by leaving out text, or into the model's `positions`.

    `max_tokens` is that of the stage that cuts most, `kept` that of the one that cuts least; None is no limit.
    """
    from mvlm_core.modeling.chat_encoding import require_positions, truncate
    from mvlm_core.modeling.visual_lengths import VisualLengths

    report, image_id, ids = TokenReport(), processor.image_token_id, []
    visual_lengths = VisualLengths(processor)
    lengths: dict[ScaleWord, list[int]] = {scale: [] for scale in scales}
    for row in rows:
        try:
            encoded = processor.encode(row.messages())
            ids.append(row.id)
            for scale in scales:
                lengths[scale].append(encoded.length_with(visual_lengths.of(row.pictures, scale), image_id))
            if not any(encoded.supervised):
                raise MvlmError("nothing is supervised: the chat template marks no answer of it")
            finest, visual = visual_lengths.finest(row.pictures, scales)
            fits = partial(visual_lengths.that_fits, row.pictures, finest)
            if max_tokens is not None:
                report.shortened += truncate(encoded, max_tokens, finest, image_id, visual, fits) is not encoded
            length = encoded.length_with(visual, image_id)
            require_positions(min(length, kept or length), positions, finest, visual, fits)
        except MvlmError as error:
            report.faults.append(f"id {row.id}: {error}")
        progress(1)
    report.lengths = {scale: _lengths(np.asarray(found), ids) for scale, found in lengths.items() if found}
    return report


def _lengths(found: np.ndarray, ids: Sequence[str]) -> Lengths:
    median, most = np.quantile(found, [0.5, 0.95], method="inverted_cdf")
    longest = int(found.argmax())
    return Lengths(int(median), int(most), int(found[longest]), ids[longest])


def repeated_ids(rows: Sequence[Row]) -> int:
    """How many rows of LLaVA's format got a number behind an id that another row had before."""
    ids = {row.id for row in rows}
    return sum((found := re.fullmatch(r"(.*)~\d+", row.id)) is not None and found[1] in ids for row in rows)


def unlike_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """A few rows to look at: the first of each kind (pictures, turns, a system text), then some in between."""
    kinds: dict[tuple[int, bool, bool], Row] = {}
    for row in rows:
        kinds.setdefault((min(len(row.pictures), 2), len(row.turns) > 1, row.system is not None), row)
    spread = [rows[i] for i in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
    picked = {row.id: row for row in [*kinds.values(), *reversed(spread)]}
    return list(picked.values())[:count]
