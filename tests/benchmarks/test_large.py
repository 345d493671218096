"""More tiles with fewer tokens: what the benchmark of sheets tells of labels."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.router.large import against, draw, tokens_of
from router.labels import read_table
from tests.support.labels_maker import TILED, make_labels


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiled") / "labels"
    make_labels(folder, TILED)
    return folder


def test_many_tiles_against_few(labels, tmp_path):
    table = read_table(labels).test_rows
    tokens = tokens_of(labels, table)
    np.testing.assert_allclose(table.row_cost - tokens, 10.0 * (tokens / [1, 4, 16, 4, 16, 16] - 1))
    whole, more = against(table, tokens, "16@16", "16@4")
    assert whole["rows"] == len(table)
    sixteen = (np.array([int(group[1:]) for group in table.groups]) // 2 % 3) == 2
    assert more["rows"] == sixteen.sum()
    assert more["tokens"] == [16 * 17, 16 * 5]
    assert more["cost"] == [16 * 17 + 160, 16 * 5 + 40]
    for found, rows in ((whole, slice(None)), (more, sixteen)):
        right = [table.scores[rows, k].mean() for k in (5, 4)]
        assert found["right"] == pytest.approx(right)
        assert found["difference"]["value"] == pytest.approx(right[0] - right[1], abs=1e-6)
        assert found["difference"]["low"] <= found["difference"]["value"] <= found["difference"]["high"]
    draw(table, tokens, tmp_path / "tiles.png")
    assert (tmp_path / "tiles.png").stat().st_size > 10_000
