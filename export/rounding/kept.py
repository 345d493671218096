"""The numbers of many layers, as small as a file has them: two of four bits to a byte, half scales as halves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from export.graphs.grids import Grid, Numbers


class KeptNumbers(Mapping[str, Numbers]):
    """layer -> numbers, unpacked when they are asked for."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Grid, int, Tensor, Tensor, Tensor]] = {}

    def keep(self, name: str, numbers: Numbers) -> None:
        """Keep the numbers of a layer."""
        grid, k = numbers.grid, numbers.values.shape[1]
        values = numbers.values
        if grid.bits == 4:
            if k % 2:
                values = torch.cat([values, values.new_zeros(len(values), 1)], 1)
            values = values[:, ::2] | values[:, 1::2] << 4
        scale = numbers.scale.half() if grid.half else numbers.scale
        self._kept[name] = grid, k, values, scale, numbers.zero

    def __getitem__(self, name: str) -> Numbers:
        grid, k, values, scale, zero = self._kept[name]
        if grid.bits == 4:
            values = torch.stack([values & 0xF, values >> 4], -1).flatten(1)[:, :k]
        return Numbers(grid, values, scale.float(), zero)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
