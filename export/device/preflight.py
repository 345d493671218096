"""What a build will take, foretold from the size of the weights, so that it is refused before minutes are gone.

Factors are of the bytes of the weight file. TensorRT on the device: builds of language models were seen to hold three
to four times the parameters (NVIDIA/TensorRT-Edge-LLM#30). TensorRT for RTX 1.7: eight times at 24 layers of 896 in
half precision (773 MiB of weights, 6.3 GB at the peak, measured).
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from export.runtime.errors import MvlmError
from export.runtime.manifest import Manifest

_PEAK_PER_BYTE = {"tensorrt": 4.0, "tensorrt-rtx": 8.5}
# What the builder takes before it has seen a weight.
_BASE_BYTES = {"tensorrt": 2**30, "tensorrt-rtx": 2**28}
# Half precision may keep the weights twice, and a layout that is tried stands beside the one before it.
_DISK_PER_BYTE = 4.0
_BASE_DISK_BYTES = 2**27
_MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True)
class Forecast:
    """Bytes that a build takes at its peak, and on the disk."""

    weights: int
    memory: int
    disk: int


def forecast(manifest: Manifest, product: str) -> Forecast:
    """Foretell a build of this bundle."""
    weights = sum(path.stat().st_size for path in manifest.folder.glob("*.bin"))
    memory = _BASE_BYTES[product] + int(_PEAK_PER_BYTE[product] * weights)
    return Forecast(weights, memory, _BASE_DISK_BYTES + int(_DISK_PER_BYTE * weights))


def require_room(manifest: Manifest, product: str, *, unchecked: bool = False) -> Forecast:
    """Raise `MvlmError` when memory or disk will not do; `unchecked` lets memory be tried all the same."""
    wanted = forecast(manifest, product)
    free_disk = shutil.disk_usage(manifest.folder).free
    if free_disk < wanted.disk:
        raise MvlmError(
            f"engines of {manifest.folder} may take {_mib(wanted.disk)}, and {_mib(free_disk)} are free there: make"
            " room",
            code="no-disk",
        )
    free = available_bytes()
    if not unchecked and free is not None and free < wanted.memory:
        raise MvlmError(
            f"building {manifest.folder} will take about {_mib(wanted.memory)} of memory, and {_mib(free)} are free:"
            " stop other programs, add swap, export with smaller --precision, or try it with --unchecked-memory",
            code="no-memory",
        )
    return wanted


def available_bytes() -> int | None:
    """Memory that programs may still take, swap with it; None where the system does not tell."""
    if not _MEMORY.is_file():
        return None
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", _MEMORY.read_text(), re.MULTILINE))
    return 1024 * (int(found.get("MemAvailable", 0)) + int(found.get("SwapFree", 0)))


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
