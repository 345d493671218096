"""Questions and pictures of the test rows for a report: from the labels, or of older ones from the rows."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from export.runtime.artefact import sha256_file
from export.runtime.errors import MvlmError

_ASKED = "asked.parquet"
_LARGEST_PICTURE_BYTES = 200_000
_KINDS_OF_FILES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif"}
_BEGINNINGS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}


@dataclass(frozen=True)
class ShownRow:
    """A question, and its picture: the file as bytes, or where it lies, or None."""

    question: str
    held: bytes | Path | None

    @property
    def picture(self) -> str:
        """The picture as a data: URL, empty where there is none to show."""
        return _of_file(self.held) if isinstance(self.held, Path) else _of_bytes(self.held or b"")


def shown_rows(labels: Path, facts: Mapping[str, Any]) -> tuple[dict[str, ShownRow], str]:
    """The test rows by their id, and why no pictures are there where none are. `facts` are those of the labels.

    Raises `MvlmError` where what the labels hold was changed.
    """
    if _ASKED not in facts["files"]:  # labels of before hold no questions
        return _of_rows_file(facts)
    file = labels / _ASKED
    if not file.is_file() or sha256_file(file) != facts["files"][_ASKED]:
        raise MvlmError(f"{file} is missing or was changed since it was written: label again")
    rows = pq.read_table(file).to_pylist()
    pictures = {row["id"]: row["picture"] for row in rows}
    return {row["id"]: ShownRow(row["question"], pictures[row["picture_of"]]) for row in rows}, ""


def _of_bytes(data: bytes) -> str:
    kind = next((kind for begins, kind in _BEGINNINGS.items() if data.startswith(begins)), None)
    return _data_url(kind, data) if kind else ""


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _of_rows_file(facts: Mapping[str, Any]) -> tuple[dict[str, ShownRow], str]:
    """From rows.jsonl, which is read only as it was labelled."""
    where = Path(str(facts.get("rows", "")))
    file = where / "rows.jsonl" if where.is_dir() else where
    if file.suffix != ".jsonl" or not file.is_file():
        return {}, f"The rows ({where}) are no longer where they were labelled, so no pictures are shown."
    if sha256_file(file) != facts.get("rows_sha256"):
        return {}, f"The rows ({where}) have changed since they were labelled, so no pictures are shown."
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return {
        str(row.get("id")): ShownRow(str(row.get("question")), file.parent / str(row.get("image"))) for row in rows
    }, ""


def _of_file(path: Path) -> str:
    """Nothing for a picture that is missing, large, or of a kind that browsers do not show."""
    kind = _KINDS_OF_FILES.get(path.suffix.lower())
    if kind is None or not path.is_file() or path.stat().st_size > _LARGEST_PICTURE_BYTES:
        return ""
    return _data_url(kind, path.read_bytes())
