"""What a figure was measured on, and the short name under which a device keeps what is true of it alone."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from .artefact import sha256_json

_CPU_FACTS, _STATUS = Path("/proc/cpuinfo"), Path("/proc/self/status")
# Jetson boards say here which they are.
_BOARD = Path("/proc/device-tree/model")
_DECISIVE = {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16", "sve"}


def machine() -> dict[str, Any]:
    """The processor, its cores, and the instructions that decide how fast matrices are multiplied."""
    lines = _CPU_FACTS.read_text().splitlines() if _CPU_FACTS.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    board = {"board": _BOARD.read_text().rstrip("\0\n")} if _BOARD.is_file() else {}
    return {
        **board,
        "processor": facts.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "instructions": sorted(flags & _DECISIVE),
        "system": platform.system(),
    }


def device_name(provider: str, threads: int | None, gpu: str | None = None) -> str:
    """A provider on this machine as the name of a folder: what was measured under one name holds for no other."""
    facts = [machine(), threads, gpu]
    return f"{provider}-{sha256_json(facts)[:8]}"


def resident_mib(line: str = "VmRSS") -> float | None:
    """A line of this process's memory, in MiB; None where the system does not tell."""
    if not _STATUS.is_file():
        return None
    found = re.search(rf"^{line}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found.group(1)) / 1024 if found else None
