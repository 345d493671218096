"""What is read of the features: what says something, on the rows of the fit alone, products of two included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from router.estimators.basis import LIMIT, Basis, column_strengths
from router.estimators.candidates import OnBasis
from router.estimators.learned import PooledTrees, ScaleLogistic

SCALES = (1, 4, 36)


@pytest.fixture
def drawn():
    """Features (n, d) of which two decide together and neither alone, and scores (n, K)."""
    random = np.random.default_rng(0)
    x = random.standard_normal((3000, 12)).astype(np.float32)
    x[:, 5] = 7.0
    probability = np.where(((x[:, 2] > 0) != (x[:, 9] > 0))[:, None], [0.1, 0.3, 0.9], [0.8, 0.9, 0.9])
    return x, (random.random(probability.shape) < probability).astype(np.float32), probability


def test_constant_features_are_left_out_and_the_rest_standardised(drawn):
    x, y, _ = drawn
    basis = Basis().fit(x, y)
    assert basis.columns_.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    made = basis.transform(x)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(made.std(axis=0), 1, atol=0.01)


def test_a_pair_that_decides_together_is_found(drawn):
    x, y, _ = drawn
    basis = Basis().fit(x, y)
    found = {tuple(basis.columns_[pair]) for pair in basis.pairs_}
    assert found == {(2, 9)}
    np.testing.assert_allclose(
        basis.transform(x)[:, 11],
        (basis.transform(x)[:, 2] * basis.transform(x)[:, 8] - basis.pair_mean_[0]) * basis.pair_per_std_[0],
    )


def test_trees_that_are_greedy_miss_it_and_with_the_product_they_do_not(drawn):
    x, y, probability = drawn
    trees = PooledTrees(SCALES, num_trees=40)
    error = [
        np.abs(expit(estimator.fit(x[:2000], y[:2000]).margins(x[2000:])) - probability[2000:]).mean()
        for estimator in (trees, OnBasis(trees))
    ]
    assert error[1] < 0.6 * error[0]


def test_nothing_is_found_in_noise():
    random = np.random.default_rng(1)
    x, y = random.standard_normal((3000, 40)).astype(np.float32), random.random((3000, 3))
    assert len(Basis().fit(x, y).pairs_) <= 1
    assert not len(Basis(most_pairs=0).fit(x, y).pairs_)


def test_squares_of_two_valued_features_are_no_pairs():
    random = np.random.default_rng(1)
    x = random.integers(0, 2, (2000, 3)).astype(np.float32)
    y = np.repeat(x[:, :1], 3, axis=1)
    assert all(a != b for a, b in Basis().fit(x, y).pairs_)


def test_wide_tables_keep_what_says_most_a_pair_included(drawn):
    x, y, _ = drawn
    wide = np.column_stack([x, np.random.default_rng(3).standard_normal((3000, 300))]).astype(np.float32)
    y[:, 0] = wide[:, 200] > 0
    basis = Basis(wide=100, kept=10).fit(wide, y)
    assert len(basis.columns_) == 10
    assert {2, 9, 200} <= set(basis.columns_.tolist())
    assert (2, 9) in {tuple(basis.columns_[pair]) for pair in basis.pairs_}
    assert basis.transform(wide).shape == (3000, 10 + len(basis.pairs_))


def test_a_fit_is_blind_to_other_rows(drawn):
    x, y, _ = drawn
    one, other = OnBasis(ScaleLogistic()), OnBasis(ScaleLogistic())
    spoilt = x.copy()
    spoilt[2000:] = 100.0
    np.testing.assert_array_equal(one.fit(x[:2000], y[:2000]).margins(x), other.fit(spoilt[:2000], y[:2000]).margins(x))


def test_strange_values_are_cut(drawn):
    x, y, _ = drawn
    basis = Basis(most_pairs=0).fit(x, y)
    strange = x[:1].copy()
    strange[0, 0] = 1e30
    assert basis.transform(strange)[0, 0] == LIMIT


def test_strengths_are_those_of_a_loop(drawn):
    x, y, _ = drawn
    target = y - y.mean(axis=0)
    slow = [max(abs((x[:, j] * target[:, k]).sum() / target[:, k].std()) for k in range(3)) for j in range(12)]
    np.testing.assert_allclose(column_strengths(x, target), np.array(slow) / 3000**0.5, rtol=1e-3, atol=1e-3)
