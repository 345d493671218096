"""A square grid told from coarse to fine, so that its first m numbers hold the grid of m cells, and nothing else.

A cell that is split into k x k has k² averages. Their mean is the cell's own average, which was told before, so one of
them is known already and k² - 1 are new: a hierarchical basis (Yserentant, Numer. Math. 49, 1986), in which each number
is the average of one cell. Haar's wavelets span the same and tell what is new as differences. A language model learned
to read those far slower: a difference belongs to no one place, and what is seen there comes with either sign.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from .scales import nested_sides


@lru_cache
def nested_basis(grid_side: int) -> NDArray[np.float64]:
    """The whole change of basis (P, P): row i says what token i takes of each patch. It is invertible.

    Row 1 is the mean of all patches. Behind it stand the cells of each finer grid of `nested_sides`: first the first
    part of every coarser cell, row by row, then the second of every one, and never the last.
    """
    rows = [np.full((grid_side, grid_side), grid_side**-2.0)]
    for coarse, fine in pairwise(nested_sides(grid_side)):
        size, parts = grid_side // fine, fine // coarse
        for down, across in spread_out(parts)[:-1]:
            for row, column in product(range(coarse), repeat=2):
                top, left = (row * parts + down) * size, (column * parts + across) * size
                cell = np.zeros((grid_side, grid_side))
                cell[top : top + size, left : left + size] = size**-2.0
                rows.append(cell)
    return np.stack(rows).reshape(grid_side**2, grid_side**2)


def spread_out(side: int) -> list[tuple[int, int]]:
    """The places of a square from the first corner on, each as far as can be from those before it.

    So a prefix that ends within a grid shows something of every part of the picture.
    """
    places = [(row, column) for row in range(side) for column in range(side)]
    far = np.square(np.subtract(np.array(places)[:, None], np.array(places))).sum(-1)  # (side², side²)
    order, nearest = [0], far[0].copy()
    while len(order) < len(places):
        order.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, far[order[-1]])
        nearest[order] = -1
    return [places[i] for i in order]
