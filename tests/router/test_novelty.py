"""What is out of distribution: ordinary rows seldom are, strange ones always, and the rate is what was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from router.estimators.novelty import Familiarity


@pytest.fixture(scope="module")
def rows():
    """Features in a few correlated directions, with one that never moves, and ten rows a picture."""
    random = np.random.default_rng(0)
    mixed = random.standard_normal((6, 20))
    x = (random.standard_normal((4000, 6)) @ mixed + 0.3 * random.standard_normal((4000, 20))).astype(np.float32)
    x[:, 4] = 2.0
    return x, (np.arange(4000) // 10).astype(str)


@pytest.mark.parametrize("asked", [0.01, 0.05, 0.2])
def test_ordinary_rows_are_sent_away_no_more_often_than_was_asked(rows, asked):
    x, groups = rows
    fitted = Familiarity().fit(x[:2000], groups[:2000])
    rate = (fitted.p_value(x[2000:]) < asked).mean()
    assert 0.5 * asked <= rate <= 1.3 * asked + 0.002  # of 2000 rows
    # Of the rows that were calibrated on it is at most that, whatever they are.
    assert ((fitted.calibration_ >= np.quantile(fitted.calibration_, 1 - asked)).mean()) <= asked + 0.002


def test_rows_off_the_usual_directions_are_caught(rows):
    x, groups = rows
    fitted = Familiarity().fit(x, groups)
    random = np.random.default_rng(1)
    # As long as the usual rows, in directions that they never take.
    strange = random.standard_normal((200, 20)).astype(np.float32) * x.std()
    assert (fitted.p_value(strange) < 0.01).mean() > 0.95
    assert (fitted.p_value(x[:200] + 1000) < 0.01).all()


def test_a_feature_that_never_moved_measures_nothing(rows):
    x, groups = rows
    fitted = Familiarity().fit(x, groups)
    moved = x[:50].copy()
    moved[:, 4] = 99.0
    np.testing.assert_array_equal(fitted.p_value(moved), fitted.p_value(x[:50]))


def test_the_p_value_is_the_rank_among_calibration_rows(rows):
    x, groups = rows
    fitted = Familiarity().fit(x, groups)
    for row in x[:20]:
        distance = (((row - fitted.mean_) @ fitted.directions_) ** 2).sum()
        slow = (1 + sum(known >= distance for known in fitted.calibration_)) / (1 + len(fitted.calibration_))
        assert fitted.p_value(row[None])[0] == pytest.approx(slow, abs=1e-9)


def test_few_rows_calibrate_as_many(rows):
    x, groups = rows
    assert len(Familiarity().fit(x[:60], groups[:60]).calibration_) == 60


def test_a_strange_picture_is_noticed_beside_many_columns_of_words():
    random = np.random.default_rng(2)
    x = random.standard_normal((3000, 44)).astype(np.float32)
    strange = random.standard_normal((300, 44)).astype(np.float32)
    strange[:, :4] *= 2.5
    groups = np.arange(3000).astype(str)
    together, apart = (
        (Familiarity(d_image).fit(x, groups).p_value(strange) < 0.01).mean() for d_image in (0, 4)
    )  # fmt: skip
    assert apart > together + 0.1
