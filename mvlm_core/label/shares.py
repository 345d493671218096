"""The parts of a sweep shared out among processes, as torchrun starts them, on one machine or on several.

Processes meet in the folder of parts and nowhere else, so that any of them may die: every process does its own share,
and the first one also whatever it finds undone, whoever should have done it. A part that is done twice is the same
bytes twice, as files are put in place whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from export.runtime.errors import MvlmError


@dataclass(frozen=True)
class Share:
    """One process of several: `rank` counts from 0."""

    rank: int = 0
    processes: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def parts(self, starts: Sequence[int]) -> Iterator[int]:
        """The parts that this process is to do, its own before those of others; whoever asks looks what is undone.

        The first process comes to the others' last parts first, which they will do last.
        """
        yield from starts[self.rank :: self.processes]
        if self.first:
            yield from (start for n, start in reversed(list(enumerate(starts))) if n % self.processes)


ALONE = Share()


def own_share() -> Share:
    """What torchrun says of this process. Raises `MvlmError` for numbers that make no sense."""
    told = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        rank, processes = map(int, told)
    except ValueError:
        rank, processes = -1, 0
    if not 0 <= rank < processes:
        raise MvlmError(
            f"RANK is {told[0]} and WORLD_SIZE {told[1]}: start processes with torchrun, or unset both for a single one"
        )
    return Share(rank, processes)


def own_device(device: str) -> str:
    """`cuda` as the device of this process, where torchrun started several on a machine."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None else device
