"""A square grid told from coarse to fine, so that its first m numbers hold the grid of m cells, and nothing else.

A cell that is split into k x k has k² averages, whose mean is the cell's own, known already: k² - 1 numbers are new.
They are the cell's two-dimensional cosine coefficients but the first, which for k = 2 are Haar's wavelets.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from .scales import nested_sides

Array = NDArray[np.float64]


@lru_cache
def nested_basis(grid_side: int) -> Array:
    """The whole change of basis (P, P): row i says what token i takes of each patch. It is invertible.

    Row 1 is the mean of all patches. Behind it each finer grid of `nested_sides` adds its details, one kind after the
    other, the coarse kinds first, each for all cells of the coarser grid row by row.
    """
    rows = [np.full((grid_side, grid_side), grid_side**-2.0)]
    for coarse, fine in pairwise(nested_sides(grid_side)):
        size = grid_side // coarse  # of a cell, in patches
        for detail in cell_details(fine // coarse):  # (k, k)
            spread = np.kron(detail, np.ones((grid_side // fine,) * 2)) / (grid_side // fine) ** 2
            for row, column in product(range(coarse), repeat=2):
                whole = np.zeros((grid_side, grid_side))
                whole[row * size : (row + 1) * size, column * size : (column + 1) * size] = spread
                rows.append(whole)
    return np.stack(rows).reshape(grid_side**2, grid_side**2)


def cell_details(parts: int) -> Array:
    """What k x k averages hold beside their mean: (k² - 1, k, k), orthonormal, ordered by frequency."""
    places = (np.arange(parts) + 0.5) / parts
    waves = np.cos(np.pi * np.outer(np.arange(parts), places))  # (k, k)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    order = sorted(product(range(parts), repeat=2), key=lambda uv: (max(uv), sum(uv), uv))
    return np.stack([np.outer(waves[u], waves[v]) for u, v in order[1:]])
