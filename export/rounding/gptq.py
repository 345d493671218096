"""A layer's weights to few bits so that its outputs stay near (GPTQ, arXiv 2210.17323): N outputs, K inputs.

Inputs are rounded one after another, and what one loses is made good by those that are not rounded yet. Three things
are added to the paper's: zero points; scales that are searched for with the weight that the method itself gives to an
input's error; and outputs that what was seen would carry far from their weights are rounded by themselves. No library
was measured against it yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from export.graphs.grids import Grid, Numbers, fit, nearest

# A share of the mean of the diagonal is added to it. The paper's hundredth trusts what was seen too far where that are
# a few thousand tokens: on real weights a tenth leaves a sixth less of the divergence (benchmarks/decode/real.py).
DAMPING = 0.1
# An output further from its weight than this share of the weight's size fits what was seen and little else.
FARTHEST = 0.45
# So many inputs are rounded before the rest is corrected in one product.
_AT_ONCE = 128


def gptq(weight: Tensor, squares: Tensor, grid: Grid) -> Numbers:
    """Round a weight (N, K) given the sum of outer products of its inputs, `squares` (K, K)."""
    left = weight.detach().float().clone()
    n, k = left.shape
    inverse = _inverse_root(squares)  # (K, K), upper
    importance = inverse.diagonal() ** -2  # (K,): what an error at this input costs after all that can be made good
    values = torch.empty(n, k, dtype=torch.uint8)
    fitted = []
    for first in range(0, k, max(_AT_ONCE, grid.block)):
        last = min(first + max(_AT_ONCE, grid.block), k)
        part, lost = left[:, first:last].clone(), torch.empty(n, last - first)
        within = inverse[first:last, first:last]
        for i in range(last - first):
            if i % grid.block == 0:
                block = slice(i, i + grid.block)
                scale, zero = fit(part[:, block], grid, importance[first:last][block])
                fitted.append((scale, zero))
            column = part[:, i : i + 1]
            numbers = grid.numbers(column, scale, zero)
            values[:, first + i] = numbers[:, 0].to(torch.uint8)
            error = (column - (numbers - zero) * scale) / within[i, i]
            part[:, i + 1 :] -= error * within[i, i + 1 :]
            lost[:, i] = error[:, 0]
        left[:, last:] -= lost @ inverse[first:last, last:]
    scales, zeros = (torch.cat(side, dim=1) for side in zip(*fitted, strict=True))
    return _near(weight.detach().float(), Numbers(grid, values, scales, zeros.to(torch.uint8)))


def _near(weight: Tensor, numbers: Numbers) -> Numbers:
    """The numbers of a weight (N, K), those of outputs that are too far from it replaced by the nearest ones."""
    far = (numbers.restored() - weight).norm(dim=1) > FARTHEST * weight.norm(dim=1)  # (N,)
    if far.any():
        alone = nearest(weight[far], numbers.grid)
        numbers.values[far], numbers.scale[far], numbers.zero[far] = alone.values, alone.scale, alone.zero
    return numbers


def _inverse_root(squares: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of `squares`, damped: (K, K)."""
    squares = squares.float().clone()
    squares.diagonal()[squares.diagonal() == 0] = 1  # an input that is always 0 tells nothing, and is rounded alone
    squares.diagonal().add_(DAMPING * squares.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(squares)), upper=True)
