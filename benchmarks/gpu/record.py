"""What a stage writes down: one JSON file, whole after each figure, so that a stage cut short leaves what it had."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.code import code_sha256
from export.runtime.artefact import describe, write_json
from export.runtime.machine import machine


@dataclass(frozen=True)
class Told:
    """What a stage is told: where, at which size, for how long, and which weights.

    `seconds` is what the stage may take in all. `weights` is the folder of a language model, `rows` that of drawn
    pictures; without them weights are random, and pictures are drawn.
    """

    out: Path
    rehearse: bool
    seconds: float
    weights: Path | None = None
    rows: Path | None = None

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Record:
    """The figures of a stage, as results/ keeps them."""

    file: Path
    stage: str
    figures: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def add(self, **figures: Any) -> None:
        """Add figures, and write the file anew."""
        self.figures |= figures
        facts = describe(
            "benchmark", measured=f"gpu_{self.stage}", command=f"python -m benchmarks.gpu --stage {self.stage}",
            date=datetime.now(UTC).date().isoformat(), machine=machine() | accelerator(),
            code=code_sha256(f"benchmarks.gpu.{self.stage}"),
            seconds=round(time.perf_counter() - self.began, 1), **self.figures,
        )  # fmt: skip
        beside = self.file.with_suffix(".partial")
        write_json(beside, facts)
        beside.replace(self.file)

    def attempt(self, name: str, part: Callable[[], Any]) -> Any:
        """A part of the stage: what it returns, or why it failed; the parts behind it run in either case."""
        try:
            found = part()
        except Exception as error:  # whatever it was, it is written down and the time goes on
            found = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        self.add(**{name: found})
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return found

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began


def accelerator() -> dict[str, Any]:
    """The GPU, where there is one."""
    if not torch.cuda.is_available():
        return {}
    facts = torch.cuda.get_device_properties(0)
    return {"gpu": facts.name, "gpu_memory_gib": round(facts.total_memory / 2**30, 1), "cuda": torch.version.cuda}


def wait() -> None:
    """Until the GPU has done what it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], *, rounds: int, warm: int = 1) -> float:
    """The median of some rounds, each waited for."""
    for _ in range(warm):
        work()
    taken = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - start)
    return median(taken)
