"""Rows -> the run of steps: which pictures each step takes, at which scales, and which of their questions.

All chance is drawn here, by generators that are seeded beforehand: what a stopped run would have seen, the resumed one
sees, and every process of a distributed run knows the scales of a step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from export.runtime.errors import MvlmError
from export.runtime.views.scale import ScaleWord
from mvlm_core.data.pictures import PictureSource
from mvlm_core.data.row import Row

from .scale_sampling import AnyOf, draw_steps
from .stages import StageConfig

# How many groups of a stream are held at once, to be taken in a random order.
_SHUFFLED = 1000


@dataclass(frozen=True)
class Group:
    """Rows about the same pictures. A row without a picture stands alone."""

    pictures: tuple[PictureSource, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Planned:
    """A group in a step: its scales, the order of its questions, and whether they are one conversation."""

    group: Group
    scales: tuple[ScaleWord, ...]
    order: NDArray[np.int64]
    running: bool


def group_rows(rows: Iterable[Row]) -> list[Group]:
    """Rows about the same pictures, in the order in which the pictures first appear."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[_key(row)].append(row)
    return [Group(members[0].pictures, tuple(members)) for members in groups.values()]


def _key(row: Row) -> tuple[str, ...]:
    return tuple(picture.key for picture in row.pictures) or ("", row.id)


@dataclass(frozen=True)
class Schedule:
    """What each step of a stage does, whatever its pictures: its scales, and whether questions run on."""

    scales: list[tuple[ScaleWord, ...]]
    running: list[bool]

    @classmethod
    def of(cls, stage: StageConfig, steps: int, run_scales: Sequence[ScaleWord], random: Generator) -> Schedule:
        scales = draw_steps(stage.show or (AnyOf(any_of=tuple(run_scales)),), steps, random)
        return cls(scales, (random.random(steps) < stage.running_share).tolist())


class Plan(Dataset[Planned]):
    """The run of steps over rows that are at hand; item i belongs to step i // pictures of the stage."""

    def __init__(
        self, groups: Sequence[Group], run_scales: Sequence[ScaleWord], stage: StageConfig, *, seed: int
    ) -> None:
        random = np.random.default_rng(seed)
        steps = stage.steps or math.ceil((stage.epochs or 0) * len(groups) / stage.pictures)
        epochs = math.ceil(steps * stage.pictures / len(groups))
        taken = np.concatenate([random.permutation(len(groups)) for _ in range(epochs)])
        self.schedule = Schedule.of(stage, steps, run_scales, random)
        self.items = [
            _planned(groups[number], n // stage.pictures, self.schedule, stage, random)
            for n, number in enumerate(taken[: steps * stage.pictures].tolist())
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Planned:
        return self.items[index]


class Stream(IterableDataset[Planned]):
    """The run of steps over rows that are read as they come, again from the start when they end.

    Neighbouring rows about the same pictures are one group. `rows` opens the stream anew; `steps` must be stated.
    The loader takes a pass from one worker after another: each reads the whole stream, and yields the passes of its
    turn.
    """

    def __init__(
        self, rows: Callable[[], Iterator[Row]], run_scales: Sequence[ScaleWord], stage: StageConfig, *, seed: int
    ) -> None:
        if stage.steps is None:
            raise MvlmError(f"stage {stage.name}: rows that are streamed have no known end, so say steps, not epochs")
        self.rows, self.stage, self.seed = rows, stage, seed
        self.schedule = Schedule.of(stage, stage.steps, run_scales, np.random.default_rng(seed))

    def __iter__(self) -> Iterator[Planned]:
        worker = get_worker_info()
        turn, turns = (worker.id, worker.num_workers) if worker else (0, 1)
        random = np.random.default_rng((self.seed, 1))
        for n, group in enumerate(_shuffled(self._groups(), random)):
            step = n // self.stage.pictures
            if step == len(self.schedule.scales):
                return
            planned = _planned(group, step, self.schedule, self.stage, random)
            if n // (self.stage.pictures // self.stage.accumulate) % turns == turn:
                yield planned

    def _groups(self) -> Iterator[Group]:
        """Groups without end. Raises `MvlmError` when the stream holds none."""
        while True:
            held: list[Row] = []
            for row in self.rows():
                if held and _key(row) != _key(held[0]):
                    yield Group(held[0].pictures, tuple(held))
                    held = []
                held.append(row)
            if not held:
                raise MvlmError("the stream holds no rows of the split train")
            yield Group(held[0].pictures, tuple(held))


def _shuffled(groups: Iterator[Group], random: Generator) -> Iterator[Group]:
    held = [group for _, group in zip(range(_SHUFFLED), groups, strict=False)]
    for group in groups:
        place = random.integers(len(held))
        yield held[place]
        held[place] = group


def _planned(group: Group, step: int, schedule: Schedule, stage: StageConfig, random: Generator) -> Planned:
    weights = np.array([stage.task_weights.get(row.task or "", 1.0) for row in group.rows])
    count = min(stage.questions or len(weights), len(weights))
    order = random.choice(len(weights), count, replace=False, p=weights / weights.sum())
    return Planned(group, schedule.scales[step], order, schedule.running[step])
