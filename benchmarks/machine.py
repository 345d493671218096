"""What a figure was measured on, and where it is kept."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.runtime.artefact import describe, write_json

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The processor, its cores, and the instructions that decide how fast matrices are multiplied."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(facts.get("flags", "").split())
    return {
        "processor": facts.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "instructions": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"}),
        "system": platform.system(),
    }


def keep(name: str, command: str, **figures: Any) -> Path:
    """Write results/<name>.json: the figures, the machine, the date, and the command that makes them again."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    date = datetime.now(UTC).date().isoformat()
    write_json(file, describe("benchmark", measured=name, command=command, date=date, machine=machine(), **figures))
    return file
