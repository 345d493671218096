"""What is no fault of a data set and yet worth a look: keys and files that nothing reads, metrics, few pictures."""

from __future__ import annotations

import difflib
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from mvlm_core.scoring.of_rows import RowMetrics, scored_by
from mvlm_core.scoring.sentences import is_sentence

from .files import ROWS_FILE, data_files, is_picture_file, kinds_of_files, values
from .formats import keys_read
from .pictures import PictureFile
from .row import Row
from .splits import FEWEST_PICTURES, SPLITS_FILE, splitting

# What this project itself lays into a folder of rows.
_OURS = (ROWS_FILE, "rows.json", SPLITS_FILE, "contact_sheet.png")
_NAMED = 5
# Of 95 % of a normal distribution, in standard deviations; the share of answers that is taken to be right at one of two
# scales alone; and the interval that a decision wants, in points.
_Z, _CHANGING, _WANTED_POINTS = 1.96, 0.2, 2.0


def unread_keys(path: Path) -> list[str]:
    """Keys of rows that nothing reads, each with the nearest one that is read in its place."""
    count: Counter[str] = Counter()
    near: dict[str, str] = {}
    for value, _ in values(data_files(path), [], streaming=True):
        read = keys_read(value)
        for key in value.keys() - set(read):
            if value[key] is not None:  # as a table holds where it holds nothing
                count[key] += 1
                near[key] = next(iter(difflib.get_close_matches(key, read, n=1)), "")
    return [
        f"{rows:,} rows hold {key!r}, which is not read" + (f": did you mean {near[key]!r}?" if near[key] else "")
        for key, rows in sorted(count.items())
    ]


def unread_files(path: Path, rows: Sequence[Row]) -> list[str]:
    """Data files and pictures of a folder that no row is read from."""
    if not path.is_dir():
        return []
    files = data_files(path)
    read = {file.resolve() for _, file in files.each()}
    read |= {picture.path.resolve() for row in rows for picture in row.pictures if isinstance(picture, PictureFile)}
    left: dict[str, list[str]] = defaultdict(list)
    for file in sorted(path.rglob("*")):
        if file.name not in _OURS and file.resolve() not in read and file.is_file():
            if file.suffix in kinds_of_files():
                left["data files that are not read"].append(file.relative_to(path).as_posix())
            elif is_picture_file(file.name):
                left["pictures that no row names"].append(file.relative_to(path).as_posix())
    return [f"{len(names):,} {what}: {_some(names)}" for what, names in left.items()]


def scoring(rows: Sequence[Row], metrics: RowMetrics) -> list[str]:
    """By which metrics rows would be labelled, and answers that they hardly ever find right."""
    told = [f"`mvlm label` would have them {scored_by(metrics.facts())}"] if rows else []
    long = [
        row.id
        for row in rows
        if str(metrics.of[row.id]) == "exact" and row.answers and all(map(is_sentence, row.answers))
    ]
    if long:
        told.append(f"{len(long):,} of them are sentences, which no answer equals word for word: f1 suits them"
                    f" (id {_some(long)})")  # fmt: skip
    return told


def router_pictures(path: Path, rows: Sequence[Row]) -> str:
    """How many pictures a router would be fitted and judged on, and what that is enough for."""
    pictures: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        pictures[row.split].add(row.group)
    val, test = (len(pictures[split]) for split in ("val", "test"))
    if min(val, test) < FEWEST_PICTURES:
        split = splitting(str(path), sum(map(len, pictures.values())))
        again = ["--overwrite"] if val or test else []  # above what the rows say themselves
        how = f"`{shlex.join([*split, *again])}` makes them" if split else "the pictures are too few to spare them"
        return (
            f"a router wants at least {FEWEST_PICTURES} pictures of val and as many of test, and there are {val} and"
            f" {test}: {how}"
        )
    return (
        f"a router would be fitted on {val:,} pictures (val) and judged on {test:,} (test): where one answer in"
        f" {1 / _CHANGING:.0f} changes between scales, its 95 % interval is about"
        f" ±{half_width(test):.1f} points, and ±{_WANTED_POINTS:g} points take {pictures_for(_WANTED_POINTS):,} of test"
    )


def half_width(pictures: int) -> float:
    """Half of the 95 % interval of a difference between two ways to choose scales, in points, of so many test pictures
    with one question each, where `_CHANGING` of the answers are right one way alone."""
    return 100 * _Z * (_CHANGING / pictures) ** 0.5


def pictures_for(points: float) -> int:
    """The test pictures whose interval reaches so many points to either side; the inverse of `half_width`."""
    return round(_CHANGING * (100 * _Z / points) ** 2)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
