"""The change of basis: its first rows are coarse grids, exactly and both ways, and nothing is said twice."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mvlm_core.modeling.nested_basis import nested_basis, spread_out
from mvlm_core.modeling.scales import nested_pool_scales, nested_sides


def test_each_grid_divides_the_next():
    assert nested_sides(24) == (1, 3, 6, 12, 24)  # M3's
    assert nested_sides(12) == (1, 3, 6, 12)
    assert nested_sides(16) == (1, 2, 4, 8, 16)
    assert nested_sides(14) == (1, 7, 14)
    assert nested_sides(37) == (1, 37)
    assert nested_sides(1) == (1,)
    assert nested_pool_scales(12) == range(1, 145)


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


def test_each_row_is_the_average_of_one_cell_told_once():
    rows = {tuple(row) for row in nested_basis(12)}
    cells = {tuple(cell) for coarse in nested_sides(12) for cell in pooling(12, coarse)}
    assert len(rows) == 144
    assert rows < cells


def test_nested_pools_wavelets_span_the_same():
    """A cell of 2 x 2 and its three differences, of every grid: what the rows up to that grid hold."""
    side, basis = 8, nested_basis(8)
    for coarse in nested_sides(side)[:-1]:
        half = side // coarse // 2
        across = np.kron([[1, -1], [1, -1]], np.ones((half, half)))
        details = [across, across.T, across * across.T]
        wavelets = [
            np.kron(np.eye(1, coarse**2, i).reshape(coarse, coarse), d) for i in range(coarse**2) for d in details
        ]
        m = 4 * coarse**2
        both = np.concatenate([basis[:m], np.reshape(wavelets, (-1, side**2))])
        assert np.linalg.matrix_rank(both) == m


def test_a_prefix_within_a_grid_is_spread_over_the_picture():
    assert spread_out(1) == [(0, 0)]
    assert spread_out(2) == [(0, 0), (1, 1), (0, 1), (1, 0)]
    assert spread_out(3)[:5] == [(0, 0), (2, 2), (0, 2), (2, 0), (1, 1)]
    assert sorted(spread_out(5)) == [(i, j) for i in range(5) for j in range(5)]
    halves = nested_basis(12)[9:18].sum(0).reshape(12, 12)  # of the 36 cells, the first of each coarser one
    assert (halves.reshape(3, 4, 3, 4).any(axis=(1, 3))).all()
