"""What a figure was measured on, and where it is kept."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.runtime.artefact import describe, write_json
from export.runtime.machine import machine

RESULTS = Path(__file__).parent / "results"


def keep(name: str, command: str, **figures: Any) -> Path:
    """Write results/<name>.json: the figures, the machine, the date, and the command that makes them again."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    date = datetime.now(UTC).date().isoformat()
    write_json(file, describe("benchmark", measured=name, command=command, date=date, machine=machine(), **figures))
    return file
