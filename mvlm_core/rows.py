"""Rows of data: the formats read, and every fault of a data set at once. No torch."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.runtime.errors import MvlmError
from export.runtime.image import open_picture

SPLITS = ("train", "val", "test")
ROWS_FILE = "rows.jsonl"


@dataclass(frozen=True)
class Row:
    """One question about one picture. Rows that share a picture share `group`, and stay in one split."""

    id: str
    image: Path
    question: str
    answers: tuple[str, ...]
    task: str | None
    group: str
    split: str


def rows_file(path: Path) -> Path:
    """The data file of a rows folder, or the file itself."""
    file = path / ROWS_FILE if path.is_dir() else path
    if not file.is_file():
        raise MvlmError(f"there are no rows at {file}: name a rows folder or file, or draw one with `mvlm data scenes`")
    return file


def read_rows(path: Path) -> list[Row]:
    """Read a rows folder (`rows.jsonl`), a JSON lines file, or LLaVA's JSON with `conversations`.

    Paths of pictures are relative to the file. Raises `MvlmError` that names every faulty row.
    """
    file = rows_file(path)
    faults: list[str] = []
    rows: list[Row] = []
    for where, value in _values(file, faults):
        try:
            rows.extend(_rows(where, value, file.parent))
        except MvlmError as error:
            faults.append(str(error))
    faults += faults_between(rows)
    if faults:
        raise MvlmError(f"{file} has {len(faults)} faults; mend these rows:\n" + "\n".join(f"  {f}" for f in faults))
    if not rows:
        raise MvlmError(f"{file} holds no rows")
    return rows


def _values(file: Path, faults: list[str]) -> Iterator[tuple[str, Any]]:
    """The JSON values of a file with a name for where each stands; broken ones go to `faults`."""
    if file.suffix == ".json":
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise MvlmError(f"{file} is not valid JSON: {error}") from None
        if not isinstance(values, list):
            raise MvlmError(f"{file} must hold a JSON list of rows, as LLaVA's data files do")
        yield from ((f"row {i}", value) for i, value in enumerate(values))
        return
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except ValueError as error:
                    faults.append(f"line {number}: not valid JSON ({error})")


def _rows(where: str, value: Any, base: Path) -> Iterator[Row]:
    if not isinstance(value, dict):
        raise MvlmError(f"{where}: not a JSON object")
    name = str(value.get("id", ""))
    if not name:
        raise MvlmError(f"{where}: no id")
    where = f"{where}, id {name}"
    image = value.get("image")
    if not isinstance(image, str) or not image:
        raise MvlmError(f"{where}: no image")
    split = value.get("split", "train")
    if split not in SPLITS:
        raise MvlmError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
    task = value.get("task")
    turns = list(_turns(where, value))
    for number, (question, answers) in enumerate(turns):
        if not isinstance(question, str) or not question.strip():
            raise MvlmError(f"{where}: the question is empty")
        if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
            raise MvlmError(f"{where}: no answers")
        yield Row(
            name if len(turns) == 1 else f"{name}#{number}", base / image, question, tuple(answers),
            None if task is None else str(task), str(value.get("group", image)), split,
        )  # fmt: skip


def _turns(where: str, value: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    if "conversations" not in value:
        answers = value.get("answers")
        yield value.get("question"), [answers] if isinstance(answers, str) else answers
        return
    said = value["conversations"]
    if not isinstance(said, list) or [turn.get("from") for turn in said] != ["human", "gpt"] * (len(said) // 2):
        raise MvlmError(f"{where}: conversations must be turns from human and gpt, one after the other")
    for human, gpt in zip(said[::2], said[1::2], strict=True):
        yield str(human.get("value", "")).replace("<image>", "").strip(), [gpt.get("value")]


def faults_between(rows: list[Row]) -> list[str]:
    """Faults that no row has alone: repeated ids, missing pictures, pictures and groups in several splits."""
    faults = []
    ids: dict[str, int] = defaultdict(int)
    splits_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    missing: dict[Path, list[str]] = defaultdict(list)
    for row in rows:
        ids[row.id] += 1
        splits_of["picture", str(row.image)].add(row.split)
        splits_of["group", row.group].add(row.split)
        missing[row.image].append(row.id)
    faults += [f"id {name}: {count} rows have it" for name, count in ids.items() if count > 1]
    faults += [
        f"{what} {name}: in the splits {', '.join(sorted(s))}" for (what, name), s in splits_of.items() if len(s) > 1
    ]
    faults += [f"id {', '.join(names)}: no picture {path}" for path, names in missing.items() if not path.is_file()]
    return faults


def check_pictures(rows: list[Row], progress: Callable[[int], None]) -> list[str]:
    """Open every picture: the faults of those that cannot be read, and of equal pictures in several splits."""
    faults = []
    first_row: dict[Path, Row] = {}
    for row in rows:
        first_row.setdefault(row.image, row)
    splits_of: dict[str, dict[str, Row]] = defaultdict(dict)
    for path, row in first_row.items():
        try:
            pixels = open_picture(path)
            splits_of[hashlib.sha256(pixels.tobytes()).hexdigest()].setdefault(row.split, row)
        except MvlmError as error:
            faults.append(f"id {row.id}: {error}")
        progress(1)
    for same in splits_of.values():
        if len(same) > 1:
            faults.append(
                "the same picture in several splits: " + ", ".join(f"{r.image} ({s})" for s, r in same.items())
            )
    return faults
