"""Numbers of few bits: a scale, and where asked a zero point, for each block of a row; fitted, rounded, restored.

Letters: N outputs and K inputs of a layer, J blocks of a row. torch keeps weights as (N, K).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# The smallest half-precision number above nought: a row of zeros needs a scale too.
TINY = 2.0**-24
# How much of a block's range the scales that are tried reach over. A number at the edge is clipped where the others
# gain more by finer steps.
_SHARES = tuple(1 - 0.025 * step for step in range(17))


@dataclass(frozen=True)
class Grid:
    """`bits` a number, a scale for each `block` of a row, and with `zeros` an integer zero point beside it.

    Scales are float32, or with `half` such numbers as half precision has.
    """

    bits: int
    block: int
    zeros: bool = False
    half: bool = False

    @property
    def top(self) -> int:
        """The largest number; the least is 0."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """What stands for nought without zero points."""
        return 2 ** (self.bits - 1)

    @property
    def bits_a_weight(self) -> float:
        """Scales and zero points included."""
        return self.bits + ((16 if self.half else 32) + (self.bits if self.zeros else 0)) / self.block

    def stored(self, scale: Tensor) -> Tensor:
        """Scales as they will be read again, in float32; none of them is nought."""
        scale = scale.half().float() if self.half else scale
        return torch.where(scale.abs() < TINY, TINY, scale)

    def numbers(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The nearest numbers of the grid, as floats: x (N, ·), scale and zero (N, 1)."""
        return ((x / scale).round_() + zero).clamp_(0, self.top)


@dataclass(frozen=True)
class Numbers:
    """A layer's weights on a grid: values (N, K) uint8, scale (N, J) float32, zero (N, J) uint8. The last block of a
    row may be cut short by K."""

    grid: Grid
    values: Tensor
    scale: Tensor
    zero: Tensor

    def restored(self) -> Tensor:
        """The weight (N, K) that these stand for, in float32."""
        k, block = self.values.shape[1], self.grid.block
        scale, zero = (x.repeat_interleave(block, 1)[:, :k] for x in (self.scale, self.zero.float()))
        return (self.values.float() - zero).mul_(scale)

    def rows(self, first: int, last: int) -> Numbers:
        """Some of the outputs."""
        return Numbers(self.grid, self.values[first:last], self.scale[first:last], self.zero[first:last])


def side_by_side(parts: list[Numbers]) -> Numbers:
    """Layers that read one input, as one: their outputs one after another."""
    values, scale, zero = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "scale", "zero"))
    return Numbers(parts[0].grid, values, scale, zero)


def nearest(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Numbers:
    """Each weight (N, K) rounded by itself. With the `importance` of each input (K,), scales are searched for."""
    n, k = weight.shape
    blocks = functional.pad(weight.detach().float(), (0, -k % grid.block)).reshape(n, -1, grid.block)
    if importance is not None:
        importance = functional.pad(importance, (0, -k % grid.block)).reshape(-1, grid.block).repeat(n, 1)
    flat = blocks.reshape(-1, grid.block)  # (N J, block)
    scale, zero = fit(flat, grid, importance)
    values = grid.numbers(flat, scale, zero).to(torch.uint8).reshape(n, -1)[:, :k]
    return Numbers(grid, values.contiguous(), scale.reshape(n, -1), zero.to(torch.uint8).reshape(n, -1))


def fit(blocks: Tensor, grid: Grid, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scales and zero points (N, 1) of blocks (N, block).

    Without `importance` the whole range is kept: without zero points the number of largest size becomes the lowest of
    the grid, which has one more step below nought than above (as in llama.cpp's Q4_0). With it ((block,), or one row
    for each block) the share of the range that loses the least, each square weighed, is kept.
    """
    tried = _reaching(blocks, grid, _SHARES if importance is not None else (1.0,))
    best_scale, best_zero = next(tried)
    if importance is None:
        return best_scale, best_zero
    best = _lost(blocks, grid, best_scale, best_zero, importance)
    for scale, zero in tried:
        lost = _lost(blocks, grid, scale, zero, importance)
        better = lost < best
        best, best_scale, best_zero = (
            torch.where(better, new, old)
            for new, old in ((lost, best), (scale, best_scale), (zero, best_zero))
        )  # fmt: skip
    return best_scale, best_zero


def _reaching(blocks: Tensor, grid: Grid, shares: tuple[float, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales and zero points that reach over shares of the range of each block."""
    if grid.zeros:
        high, low = (blocks.amax(1, keepdim=True).clamp(min=0), blocks.amin(1, keepdim=True).clamp(max=0))
        for share in shares:
            scale = grid.stored((high - low) * share / grid.top)
            yield scale, (-low * share / scale).round_().clamp_(0, grid.top)
        return
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    for share in shares:
        scale = largest * share / -grid.middle if share != 1 else largest / -grid.middle
        yield grid.stored(scale), torch.full_like(scale, grid.middle)


def _lost(blocks: Tensor, grid: Grid, scale: Tensor, zero: Tensor, importance: Tensor) -> Tensor:
    error = (grid.numbers(blocks, scale, zero) - zero).mul_(scale).sub_(blocks)
    return error.square_().mul_(importance).sum(1, keepdim=True)
