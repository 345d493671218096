"""What a figure was measured on, with which code, how long that took, and where it is kept."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.code import code_sha256, module_of
from export.runtime.artefact import describe, write_json
from export.runtime.machine import machine

RESULTS = Path(__file__).parent / "results"
_BEGAN = time.perf_counter()  # every benchmark imports this before it begins


def keep(name: str, command: str, **figures: Any) -> Path:
    """Write results/<name>.json: the figures, the machine, the date, the code, and the command that makes them again.

    `code` is the hash of what the command runs, and `took_s` how long it took, by which `benchmarks.renew` says what is
    stale.
    """
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    module = module_of(command)
    made = {
        "date": datetime.now(UTC).date().isoformat(), "machine": machine(),
        "code": module and code_sha256(module), "took_s": round(time.perf_counter() - _BEGAN),
    }  # fmt: skip
    write_json(file, describe("benchmark", measured=name, command=command, **made, **figures))
    return file
