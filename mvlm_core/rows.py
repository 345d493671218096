"""Rows of data: the files that are read, and every fault of a data set at once. No torch."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from export.runtime.errors import MvlmError
from export.runtime.image import open_picture

from .pictures import PictureFile, PictureSource
from .row import SPLITS, PicturePlace, Row, Turn, single_questions
from .row_formats import Origin, read_row

__all__ = ["ROWS_FILE", "SPLITS", "PicturePlace", "Row", "Turn", "read_rows", "rows_file", "single_questions"]
ROWS_FILE = "rows.jsonl"


def rows_file(path: Path) -> Path:
    """The data file of a rows folder, or the file itself."""
    file = path / ROWS_FILE if path.is_dir() else path
    if not file.is_file():
        raise MvlmError(f"there are no rows at {file}: name a rows folder or file, or draw one with `mvlm data scenes`")
    return file


def read_rows(path: Path) -> list[Row]:
    """Read a rows folder (`rows.jsonl`), a JSON lines file, or a JSON list such as LLaVA's.

    Paths of pictures are relative to the file. Raises `MvlmError` that names every faulty row.
    """
    file = rows_file(path)
    faults: list[str] = []
    rows: list[Row] = []
    for value, origin in _values(file, faults):
        try:
            rows.append(read_row(value, origin))
        except MvlmError as error:
            faults.append(str(error))
    faults += faults_between(rows)
    if faults:
        raise MvlmError(f"{file} has {len(faults)} faults; mend these rows:\n" + "\n".join(f"  {f}" for f in faults))
    if not rows:
        raise MvlmError(f"{file} holds no rows")
    return rows


def _values(file: Path, faults: list[str]) -> Iterator[tuple[Any, Origin]]:
    """The JSON values of a file with where each stands; broken ones go to `faults`."""
    if file.suffix == ".json":
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise MvlmError(f"{file} is not valid JSON: {error}") from None
        if not isinstance(values, list):
            raise MvlmError(f"{file} must hold a JSON list of rows, as LLaVA's data files do")
        yield from ((value, Origin(f"row {i}", file.parent)) for i, value in enumerate(values))
        return
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line), Origin(f"line {number}", file.parent)
                except ValueError as error:
                    faults.append(f"line {number}: not valid JSON ({error})")


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
    faults += [f"id {', '.join(names)}: no picture {path}" for path, names in missing.items() if not path.is_file()]
    return faults


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
