"""The change of basis: its first rows are coarse grids, exactly and both ways, and nothing is said twice."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mvlm_core.nested_grids import cell_details, nested_basis
from mvlm_core.scales import haar_scales, nested_sides


def test_each_grid_divides_the_next():
    assert nested_sides(24) == (1, 3, 6, 12, 24)  # M3's
    assert nested_sides(12) == (1, 3, 6, 12)
    assert nested_sides(16) == (1, 2, 4, 8, 16)
    assert nested_sides(14) == (1, 7, 14)
    assert nested_sides(37) == (1, 37)
    assert nested_sides(1) == (1,)
    assert haar_scales(12) == range(1, 145)


def pooling(side: int, coarse: int) -> NDArray[np.float64]:
    """The averages of the cells, by hand: (coarse², side²)."""
    size = side // coarse
    cells = np.zeros((coarse, coarse, coarse, size, coarse, size))
    for row in range(coarse):
        for column in range(coarse):
            cells[row, column, row, :, column] = size**-2.0
    return cells.reshape(coarse**2, side**2)


@pytest.mark.parametrize("side", [1, 2, 7, 12, 14, 24, 27])
def test_the_first_rows_and_the_pooled_cells_hold_the_same(side):
    """At every nested grid: an (m, m) matrix leads from the cells to the first m rows, and its inverse back."""
    basis = nested_basis(side)
    for coarse in nested_sides(side):
        m, pooled = coarse**2, pooling(side, coarse)
        there = basis[:m] @ np.linalg.pinv(pooled)
        np.testing.assert_allclose(there @ pooled, basis[:m], atol=1e-12)
        np.testing.assert_allclose(np.linalg.solve(there, basis[:m]), pooled, atol=1e-12)


def test_a_prefix_between_two_grids_does_not_hold_the_finer_one():
    basis, pooled = nested_basis(12), pooling(12, 6)
    assert np.linalg.matrix_rank(np.concatenate([basis[:35], pooled])) == 36


def test_two_by_two_is_haar():
    across, down, both = ([[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]])
    np.testing.assert_allclose(cell_details(2), np.array([across, down, both]) / 2, atol=1e-15)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_details_are_orthonormal_and_see_nothing_in_an_even_cell(parts):
    details = cell_details(parts).reshape(parts**2 - 1, -1)
    np.testing.assert_allclose(details @ details.T, np.eye(parts**2 - 1), atol=1e-12)
    np.testing.assert_allclose(details.sum(axis=1), 0, atol=1e-12)
