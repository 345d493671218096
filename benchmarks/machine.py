"""What a figure was measured on, and where it is kept."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.runtime.artefact import describe, write_json
from export.runtime.machine import machine

# A script's own folder comes first where modules are looked for, and router.py here is not the package of that name:
# the packages go before it.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
sys.path += [str(_HERE.parent), str(_HERE)]

RESULTS = Path(__file__).parent / "results"


def keep(name: str, command: str, **figures: Any) -> Path:
    """Write results/<name>.json: the figures, the machine, the date, and the command that makes them again."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    date = datetime.now(UTC).date().isoformat()
    write_json(file, describe("benchmark", measured=name, command=command, date=date, machine=machine(), **figures))
    return file
