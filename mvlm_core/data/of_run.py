"""Which rows a run was trained from, for verbs that are given the run alone. No torch."""

from __future__ import annotations

import os
from pathlib import Path


def run_rows(run: Path) -> Path | None:
    """The rows that a run's train.yaml names, where it is there and they still are."""
    file = run / "train.yaml"
    if not file.is_file():
        return None
    import yaml

    told = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(told, dict):
        return None
    rows = Path(os.path.normpath(file.parent / str(told.get("rows", "rows"))))  # as people would write it
    return rows if rows.exists() else None


def rows_for(run: Path, rows: Path | None) -> Path:
    """The rows that a verb was given, else those of its run, else the folder `rows`."""
    return rows or run_rows(run) or Path("rows")
