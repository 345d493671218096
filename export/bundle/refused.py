"""A bundle that did not pass its verification: it stands beside, under a name that says so, with what was found."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from export.runtime.artefact import write_json
from export.runtime.errors import CheckFailed

from .files import reseal


class Refused(CheckFailed):
    """The files do not compute what the model computes; `report` is what was found until then."""

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message)
        self.report = report


def keep_refused(folder: Path, bundle: Path, error: Refused) -> Path:
    """Give `folder`, which was to become `bundle`, the name of a refused one, in place of an earlier one."""
    kept = bundle.with_name(f"{bundle.name}.refused")
    write_json(folder / "verify.json", _as_json(error.report) | {"refused": str(error)})
    reseal(folder)
    if kept.exists():
        shutil.rmtree(kept)
    return folder.rename(kept)


def _as_json(value: Any) -> Any:
    """A report as JSON has it: a difference that is no number, or without end, is null."""
    if isinstance(value, dict):
        return {key: _as_json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_as_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
