"""The cells: each one model, trained in its own way from a base, and what it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.paper.compute import step_flops
from benchmarks.paper.samplers import Sampling
from benchmarks.paper.world import FINEST, SCALES, Size

Family = Literal["pool", "query", "nested_pool"]
FAMILIES: tuple[Family, ...] = ("pool", "query", "nested_pool")
# MQT's second stage draws even numbers alone: beside each odd one stand the even ones next to it.
ODD = (3, 5)
PREFIXES = tuple(sorted({*SCALES, *ODD, *(m - 1 for m in ODD), *(m + 1 for m in ODD)}))
_EVEN = {"first": 2, "last": FINEST, "step": 2}
_BETWEEN = {"first": 2, "last": FINEST - 1, "spread": "log"}
# Whether what nesting costs is a matter of so few steps.
_LONGER = 3
_ONE_OF_ALL = {"any_of": SCALES}
_TOWER = ("vision_tower",)


@dataclass(frozen=True)
class Cell:
    """One model.

    Attributes:
        show: the scales of a step, see `mvlm_core.train.scale_sampling`; empty for a base, and where nothing
            is trained.
        scales: what its test questions are asked at.
        start: the name of the cell of the same family and seed whose weights it begins with.
        compute: its steps in parts of those of other cells.
        labelled: the fit rows are asked as well, and a router is fitted.
        point: 0 for a base; then which of the benchmark's points it belongs to; 3 for what answers a question of 1.
    """

    name: str
    family: Family
    seed: int
    point: int
    show: tuple[Any, ...] = ()
    scales: tuple[int, ...] = SCALES
    start: str | None = "base"
    compute: float = 1.0
    frozen: tuple[str, ...] = _TOWER
    sampling: Sampling = "average"
    labelled: bool = False

    @property
    def key(self) -> str:
        return f"{self.family}-{self.name}-{self.seed}"

    @property
    def kept(self) -> bool:
        """Whether its weights stay: what others start from, and what the gallery and the clock look at."""
        return self.name in ("base", nested(self.family))

    @property
    def start_key(self) -> str | None:
        """The cell that must be there first. Every family's base begins from that of `pool`."""
        if self.name == "base":
            return None if self.family == "pool" else f"pool-base-{self.seed}"
        return f"{self.family}-{self.start}-{self.seed}"


def nested(family: Family) -> str:
    """The name of the family's own way: M3's and nested_pool's all scales a step, MQT's uniform draw."""
    return "uniform" if family == "query" else "nested"


def specialist(scale: int, *, short: bool = False) -> str:
    return f"{'short' if short else 'specialist'}-{scale}"


def equal_share(questions: int) -> float:
    """Steps of a specialist, in parts of MQT's one model, at which all specialists together cost what that costs."""
    alone = sum(step_flops("query", (scale,), questions) for scale in SCALES)
    return step_flops("query", (_EVEN,), questions) / alone


def cells_of(seed: int, size: Size) -> Iterator[Cell]:
    """Every cell of a seed."""
    share = equal_share(size.cell_questions)
    for family in FAMILIES:
        yield Cell("base", family, seed, point=0, scales=SCALES if family == "pool" else (FINEST,))
    yield Cell("nested", "pool", seed, 1, show=SCALES, labelled=True)
    yield Cell("uniform", "query", seed, 1, show=(_EVEN,), scales=PREFIXES)
    yield Cell("nested", "nested_pool", seed, 1, show=SCALES)
    for scale in SCALES:
        for family in ("pool", "query"):
            yield Cell(specialist(scale), family, seed, 1, show=(scale,), scales=(scale,))
    for scale in SCALES:
        yield Cell(specialist(scale, short=True), "query", seed, 1, show=(scale,), scales=(scale,), compute=share)
    for scales in (SCALES, (FINEST,)):
        name = "longer" if scales == SCALES else f"longer-{FINEST}"
        yield Cell(name, "pool", seed, 3, show=scales, scales=scales, compute=_LONGER)
    yield Cell("sandwich", "query", seed, 2, show=(FINEST, 1, _BETWEEN), scales=PREFIXES)
    yield Cell("drawn", "pool", seed, 2, show=(_ONE_OF_ALL,))
    for sampling in ("spatial", "sequential"):
        yield Cell(f"untrained-{sampling}", "pool", seed, 2, sampling=sampling)
        yield Cell(sampling, "pool", seed, 2, show=SCALES, sampling=sampling)
    yield Cell("frozen-language-model", "pool", seed, 2, show=SCALES, frozen=(*_TOWER, "language_model"))
    yield Cell("trained-tower", "pool", seed, 2, show=SCALES, frozen=())
