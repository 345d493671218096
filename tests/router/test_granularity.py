"""Which scale rows need: counted by hand, and printed."""

from __future__ import annotations

import numpy as np
import pytest

from router.labels import read_table
from router.report.granularity import granularity, needs_of_rows
from tests.support.labels_maker import Recipe, make_labels


def test_needs_by_hand():
    scores = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 0, 1], [1, 1, 0], [0, 0.5, 0.7]])
    first, stable = needs_of_rows(scores)
    assert first.tolist() == [0, 1, 2, 3, 0, 0, 1]
    assert stable.tolist() == [0, 1, 2, 3, 2, 3, 1]


def test_shares_of_a_table(tmp_path):
    make_labels(tmp_path / "labels", Recipe(rows=400, groups=48))
    table = read_table(tmp_path / "labels")
    found = {needs.name: needs for needs in granularity(table)}
    assert list(found) == ["all", "easy", "fine"]
    whole = found["all"]
    right = table.scores >= 0.5
    assert whole.never == pytest.approx(1 - right.any(axis=1).mean())
    assert whole.stable_from[-1] == pytest.approx((right[:, -1] & ~right[:, -2]).mean())
    assert sum(whole.first_right) + whole.never == pytest.approx(1)
    stable_rows = [all(row[k:]) for row in right for k in [row.argmax()] if row.any()]
    assert whole.unstable == pytest.approx(stable_rows.count(False) / 400)
    assert found["easy"].mean_need < found["fine"].mean_need
    assert found["easy"].flat_from < found["fine"].flat_from
    assert found["fine"].rise > 0.3


def test_the_verb_prints_it_and_writes_nothing(tmp_path, mvlm):
    make_labels(tmp_path / "labels", Recipe(rows=200, groups=48))
    result = mvlm("report", "--granularity", "--labels", tmp_path / "labels")
    assert result.exit_code == 0, result.output
    assert "from which on they are right answers at every finer one" in result.output
    table = [line.split()[0] for line in result.output.splitlines() if line.startswith("  ")]
    assert table[1:] == ["all", "easy", "fine"]
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]
