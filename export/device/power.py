"""Watts drawn, where the board tells: INA3221 sensors of a Jetson, RAPL of a PC; read from sysfs while something runs.

Jetson boards (Orin, Thor) show their rails as hwmon channels: `in<N>_label`, `in<N>_input` in millivolts and
`curr<N>_input` in milliamperes (kernel documentation, hwmon/ina3221). The rail named VDD_IN is the whole module's;
boards without one are the sum of their rails. A PC counts microjoules (kernel documentation, power/powercap).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_HWMON, _POWERCAP = Path("/sys/class/hwmon"), Path("/sys/class/powercap")
_WHOLE_MODULE = "VDD_IN"
_SECONDS_BETWEEN = 0.05

Reading = Callable[[], float]


class PowerMeter:
    """Watts in the background, for as long as the context is open; `watts` between two moments of `time.perf_counter`.

    `absent` says why there is nothing to read, and is empty where there is.
    """

    def __init__(self, hwmon: Path = _HWMON, powercap: Path = _POWERCAP) -> None:
        self.source, self._read, self.absent = _find(hwmon, powercap)
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PowerMeter:
        if self._read:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        if self._read:
            self._thread.join()

    def watts(self, start: float, end: float) -> float | None:
        """The mean between two moments, or None when nothing was read between them."""
        seen = [watts for at, watts in self._samples if start <= at <= end]
        return sum(seen) / len(seen) if seen else None

    def _sample(self) -> None:
        assert self._read
        while not self._stop.wait(_SECONDS_BETWEEN):
            self._samples.append((time.perf_counter(), self._read()))


def _find(hwmon: Path, powercap: Path) -> tuple[str, Reading | None, str]:
    rails = _rails(hwmon)
    if rails:
        names = [_WHOLE_MODULE] if _WHOLE_MODULE in rails else sorted(rails)
        return f"INA3221, {' + '.join(names)}", lambda: sum(_rail_watts(rails[name]) for name in names), ""
    counters = sorted(powercap.glob("intel-rapl:[0-9]/energy_uj"))
    if not counters:
        return "", None, "this machine has neither INA3221 sensors nor RAPL counters"
    try:
        return "RAPL, packages", _Rapl(counters).watts, ""
    except OSError:
        return "", None, f"{counters[0]} may only be read by root"


def _rails(hwmon: Path) -> dict[str, tuple[Path, Path]]:
    """Rails by name: where millivolts and milliamperes stand."""
    found = {}
    for label in hwmon.glob("*/in[123]_label"):
        current = label.with_name(label.name.replace("in", "curr").replace("_label", "_input"))
        volts = label.with_name(label.name.replace("_label", "_input"))
        name = (label.parent / "name").read_text().strip() if (label.parent / "name").is_file() else ""
        if name == "ina3221" and current.is_file() and volts.is_file():
            found[label.read_text().strip()] = (volts, current)
    return found


def _rail_watts(rail: tuple[Path, Path]) -> float:
    millivolts, milliamperes = (float(path.read_text()) for path in rail)
    return millivolts * milliamperes / 1e6


class _Rapl:
    """Counted microjoules as watts since the last reading."""

    def __init__(self, counters: list[Path]) -> None:
        self._counters = counters
        self._range = [float(path.with_name("max_energy_range_uj").read_text()) for path in counters]
        self._last = self._count()

    def watts(self) -> float:
        (then, before), (now, after) = self._last, self._count()
        self._last = now, after
        spent = sum((b - a) % wraps for a, b, wraps in zip(before, after, self._range, strict=True))
        return spent / 1e6 / (now - then)

    def _count(self) -> tuple[float, list[float]]:
        return time.perf_counter(), [float(path.read_text()) for path in self._counters]
