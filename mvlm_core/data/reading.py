"""Rows of data: read from their files, with every fault of a data set at once. No torch."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.runtime.errors import MvlmError, listed

from .files import ROWS_FILE, DataFiles, data_files, rows_sha256, splits_beside, values
from .formats import Origin, read_row
from .pictures import PictureFile
from .row import SPLITS, PicturePlace, Row, Turn, single_questions

__all__ = [
    "ROWS_FILE", "SPLITS", "PicturePlace", "Row", "Turn", "data_files", "read_rows", "rows_sha256", "single_questions",
    "stream_rows",
]  # fmt: skip


def read_rows(path: Path, *, said_beside: bool = True) -> list[Row]:
    """Read a data file or a folder of them: JSON lines, a JSON list, parquet or WebDataset tars (docs/data.md).

    Splits that `mvlm data split` said beside the data come before those in it; without `said_beside` they do not.
    Pictures stay where they are. Raises `MvlmError` that names every faulty row.
    """
    files = data_files(path)
    faults: list[str] = []
    rows: list[Row] = []
    seen: Counter[str] = Counter()
    beside = splits_beside(path) if said_beside else {}
    for value, origin in values(files, faults, streaming=False):
        try:
            rows.append(_read(value, origin, seen, beside))
        except MvlmError as error:
            faults.append(str(error))
    faults += faults_between(rows)
    if faults:
        raise MvlmError(f"{path} has {len(faults)} faults; mend these rows:{listed(faults, most=1000)}")
    if not rows:
        raise MvlmError(f"{path} holds no rows")
    return rows


def stream_rows(path: Path) -> Iterator[Row]:
    """The rows of a data set one after another, none kept: for one that is longer than the memory.

    Raises `MvlmError` at the first row that is faulty. Faults between rows are not looked for: `mvlm data check` does.
    """
    files: DataFiles = data_files(path)
    faults: list[str] = []
    seen: Counter[str] = Counter()
    beside = splits_beside(path)
    for value, origin in values(files, faults, streaming=True):
        if faults:
            break
        yield _read(value, origin, seen, beside)
    if faults:
        raise MvlmError(f"{path}: {faults[0]}")


def _read(value: Any, origin: Origin, seen: Counter[str], beside: Mapping[str, str]) -> Row:
    """Read a row. LLaVA's ids are those of pictures, so the second row of an id gets `~2` behind it, and so on."""
    row = read_row(value, origin)
    if value.get("conversations") is not None:
        seen[row.id] += 1
        row = row if seen[row.id] == 1 else replace(row, id=f"{row.id}~{seen[row.id]}")
    return replace(row, split=beside[row.id]) if row.id in beside else row


def faults_between(rows: list[Row]) -> list[str]:
    """Faults that no row has alone: repeated ids, missing pictures, pictures and groups in several splits."""
    faults = []
    ids: dict[str, int] = defaultdict(int)
    splits_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    missing: dict[Path, list[str]] = defaultdict(list)
    for row in rows:
        ids[row.id] += 1
        splits_of["group", row.group].add(row.split)
        for picture in row.pictures:
            splits_of["picture", str(picture)].add(row.split)
            if isinstance(picture, PictureFile):
                missing[picture.path].append(row.id)
    faults += [f"id {name}: {count} rows have it" for name, count in ids.items() if count > 1]
    faults += [
        f"{what} {name}: in the splits {', '.join(sorted(s))}" for (what, name), s in splits_of.items() if len(s) > 1
    ]
    absent = {path: names for path, names in missing.items() if not os.path.isfile(path)}  # too long a name, too
    faults += [f"id {', '.join(names)}: no picture {path}" for path, names in absent.items()]
    return faults
