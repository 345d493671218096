"""What a reader reads of rows, and what decides the sizes of its weights.

Letters: n rows, w numbers kept of a patch or a word, d features, K scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from router.reading import Reading

from .base import Floats

CHANNELS, SLOTS, HOPS, HEAD = 64, 4, 2, 96


@dataclass(frozen=True)
class Inputs:
    """What a reader reads of some rows: features (n, d) as the other estimators do, and pictures and questions."""

    features: Floats
    reading: Reading

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: NDArray[Any] | slice) -> Inputs:
        return Inputs(self.features[rows], self.reading.take(rows))


@dataclass(frozen=True)
class Shape:
    """What decides the sizes of a reader's weights: the grids' sides, fine to coarse, w, d and K."""

    sides: tuple[int, ...]
    width: int
    num_features: int
    num_scales: int

    @property
    def cells(self) -> int:
        return sum(side**2 for side in self.sides)
