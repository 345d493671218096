"""The candidates: what they recover from known probabilities, and scikit-learn's own fits beside them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from router.estimators.averages import Constant, Neighbours, TaskLookup
from router.estimators.base import PlattScaling, ScaleEstimator
from router.estimators.candidates import Blend, OnBasis, candidates
from router.estimators.learned import PooledTrees, ScaleLogistic, ScaleNetwork

SCALES = (1, 4, 36)


@pytest.fixture(scope="module")
def drawn():
    """Features (n, d), probabilities (n, K) that are logistic in them, and scores drawn from these."""
    random = np.random.default_rng(0)
    x = random.standard_normal((4000, 5)).astype(np.float32)
    x[:, 4] = 3.0  # a feature that says nothing
    weights = np.array([[1.0, 0.0, -0.5], [0.3, 0.3, 0.3], [0, 0, 1.0], [0, 0, 0], [0, 0, 0]])
    probability = expit(x @ weights + np.array([-1.0, 0.0, 1.5]))
    return x, probability, (random.random(probability.shape) < probability).astype(np.float32)


def every_kind():
    network = ScaleNetwork(hidden=6)
    return [
        ScaleLogistic(3.0), PooledTrees(SCALES, num_trees=150, num_leaves=7, rate=0.06), Constant(), network,
        Neighbours(), TaskLookup(), OnBasis(network), Blend({"line": ScaleLogistic(3.0), "network": network}),
    ]  # fmt: skip


@pytest.mark.parametrize("estimator", every_kind(), ids=lambda e: type(e).__name__)
def test_the_contract_of_scikit_learn(estimator, drawn):
    x, _, y = drawn
    assert str(clone(estimator).get_params()) == str(estimator.get_params())
    with pytest.raises(NotFittedError):
        clone(estimator).margins(x)
    fitted = clone(estimator).fit(x, y)
    assert fitted.margins(x[:7]).shape == (7, 3)
    assert fitted.n_features_in_ == 5
    assert np.isfinite(fitted.margins(x)).all()
    np.testing.assert_allclose(fitted.margins(x[:7]), clone(estimator).fit(x, y).margins(x)[:7], atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "error"), [(0, 0.03), (1, 0.06), (3, 0.03), (4, 0.08), (6, 0.04), (7, 0.03)],
    ids=["logistic", "trees", "network", "neighbours", "on a basis", "blend"],
)  # fmt: skip
def test_known_probabilities_are_recovered(kind, error, drawn):
    x, probability, y = drawn
    said = expit(every_kind()[kind].fit(x[:3000], y[:3000]).margins(x[3000:]))
    assert np.abs(said - probability[3000:]).mean() < error


def test_the_constant_is_the_mean_of_each_scale(drawn):
    x, _, y = drawn
    margins = Constant().fit(x, y).margins(x[:3])
    np.testing.assert_allclose(expit(margins), np.tile(y.mean(axis=0), (3, 1)), rtol=1e-6)
    assert np.isfinite(Constant().fit(x, np.ones_like(y)).margins(x[:1])).all()


@pytest.mark.parametrize("l2", [2.0, 2000.0])
def test_the_logistic_is_one_of_scikit_learns_for_each_scale(drawn, l2):
    x, _, y = drawn
    x = x[:, :4] @ np.float32([[1, 0.9, 0, 0], [0, 0.3, 0, 0.5], [0, 0, 2, 0], [0, 0, 1, 1]])
    ours = ScaleLogistic(l2=l2).fit(x, y).margins(x)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    for k in range(3):
        theirs = LogisticRegression(C=1 / l2, tol=1e-9, max_iter=1000).fit(z, y[:, k])
        np.testing.assert_allclose(ours[:, k], theirs.decision_function(z), atol=2e-3)


def test_copies_of_a_feature_do_no_harm(drawn):
    x, probability, y = drawn
    copied = np.column_stack([x, x[:, :2], x[:, 0] + 1e-4 * x[:, 3]]).astype(np.float32)
    said = expit(ScaleLogistic(1.0).fit(copied, y).margins(copied))
    assert np.abs(said - probability).mean() < 0.03


def test_graded_scores_are_taken_as_they_are(drawn):
    """A score of 0.3 everywhere says 0.3, though no answer is more right than wrong."""
    x, _, _ = drawn
    y = np.tile(np.float32([0.1, 0.3, 0.6]), (len(x), 1))
    for estimator in every_kind():
        np.testing.assert_allclose(expit(estimator.fit(x, y).margins(x)), y, atol=0.02)


def test_trees_see_every_scale_of_every_row(drawn):
    x, _, y = drawn
    trees = PooledTrees(SCALES, num_trees=5).fit(x, y)
    pooled = trees._with_scale(x[:2])
    assert pooled.shape == (6, 6)
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled[:, -1], np.float32(np.log2([*SCALES, *SCALES])))
    np.testing.assert_array_equal(pooled[:3, :-1], np.tile(x[0], (3, 1)))
    np.testing.assert_array_equal(pooled[3:, :-1], np.tile(x[1], (3, 1)))


def test_the_seed_of_the_trees_counts(drawn):
    x, _, y = drawn
    one, same, other = (PooledTrees(SCALES, num_trees=5, seed=seed).fit(x, y).margins(x) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_what_a_candidate_must_have():
    with pytest.raises(NotImplementedError):
        ScaleEstimator().fit(np.zeros((2, 1)), np.zeros((2, 1)))
    with pytest.raises(NotImplementedError):
        ScaleEstimator().margins(np.zeros((2, 1)))


def test_candidates_stand_from_the_simplest_up():
    found = candidates(SCALES, 3)
    assert list(found) == [
        "constant", "lookup by task", "logistic", "one bend", "network", "neighbours", "trees, monotone", "trees",
        "blend",
    ]  # fmt: skip
    heads = [estimator.head for name, estimator in found.items() if name != "constant"]
    assert {head.seed for head in heads if hasattr(head, "seed")} == {3}
    assert all(head.scales == SCALES for head in heads if isinstance(head, PooledTrees))
    assert [head.monotone for head in heads if isinstance(head, PooledTrees)] == [True, False]
    # What the blend is made of is what stands before it.
    for name, part in found["blend"].head.parts.items():
        assert part is found[name].head


def test_monotone_trees_never_fall(drawn):
    x, _, _ = drawn
    falling = np.tile(np.float32([0.9, 0.5, 0.2]), (len(x), 1))
    y = (np.random.default_rng(0).random(falling.shape) < falling).astype(np.float32)
    free, monotone = (
        PooledTrees(SCALES, num_trees=20, monotone=monotone).fit(x, y).margins(x) for monotone in (False, True)
    )
    assert (np.diff(monotone, axis=1) >= 0).all()
    assert (np.diff(free, axis=1) < 0).all()


def test_the_lookup_tells_the_kind_from_the_features():
    random = np.random.default_rng(0)
    kind = random.integers(3, size=900)
    x = (np.eye(3)[kind] + 0.1 * random.standard_normal((900, 3))).astype(np.float32)
    means = np.array([[0.1, 0.5, 0.9], [0.8, 0.8, 0.8], [0.3, 0.3, 0.6]])
    tasks = np.array(["colour", "count", "where"])[kind]
    said = expit(TaskLookup(0.0).fit(x, means[kind], tasks).margins(x))
    assert np.abs(said - means[kind]).mean() < 0.05
    two = kind < 2
    said = expit(TaskLookup(0.0).fit(x[two], means[kind[two]], tasks[two]).margins(x[two]))
    assert np.abs(said - means[kind[two]]).mean() < 0.05
    # Without kinds it is the mean of all.
    np.testing.assert_allclose(expit(TaskLookup().fit(x, means[kind]).margins(x[:1]))[0], means[kind].mean(axis=0))


def test_neighbours_against_a_slow_search(drawn):
    x, _, y = drawn
    fitted = Neighbours(neighbours=20, most_points=300).fit(x, y)
    points, scores = fitted.points_, fitted.scores_
    for row in x[:10]:
        squared = np.array([((row @ fitted.stretch_ - point) ** 2).sum() for point in points])
        weight = [max(0, 1 - one / (sorted(squared)[20] + 0.05)) for one in squared]
        assert 20 <= np.count_nonzero(weight) < 60
        mean = (weight @ scores + y.mean(axis=0)) / (sum(weight) + 1)
        np.testing.assert_allclose(expit(fitted.margins(row[None]))[0], mean, atol=1e-6)


def test_a_network_bends_where_a_line_cannot(drawn):
    x, _, _ = drawn
    wanted = np.where(np.abs(x[:, :1]) > 0.8, 0.9, 0.1) * np.ones((1, 3))
    line, network = (
        np.abs(expit(e.fit(x, wanted).margins(x)) - wanted).mean() for e in (ScaleLogistic(), ScaleNetwork())
    )
    assert network < 0.5 * line


def test_one_bend_tells_two_kinds_apart_and_what_says_nothing_is_not_heard():
    """Two kinds with a gap between them: within a kind every row is given the same."""
    random = np.random.default_rng(0)
    x = random.standard_normal((2000, 30)).astype(np.float32)
    kind = random.random(2000) < 0.5
    x[:, [0, -1]] += np.where(kind, 2, -2)[:, None]
    truth = np.where(kind[:, None], [0.1, 0.2, 0.9], [0.7, 0.8, 0.8])
    y = (random.random(truth.shape) < truth).astype(np.float32)
    line, bend = (
        np.abs(expit(e.fit(x[:1000], y[:1000]).margins(x[1000:])) - truth[1000:]).mean()
        for e in (ScaleLogistic(3.0), ScaleNetwork(hidden=1))
    )
    assert bend < 0.03
    assert bend < 0.5 * line


def test_platt_scaling_undoes_margins_that_are_too_bold():
    random = np.random.default_rng(0)
    truth = random.normal(0.4, 1.5, (3000, 3))
    y = (random.random(truth.shape) < expit(truth)).astype(float)
    bold = 2.5 * truth + 1
    fitted = PlattScaling().fit(bold, y)
    assert np.abs(fitted.probability(bold) - expit(truth)).max() < 0.03
    theirs = LogisticRegression(C=1e9, tol=1e-9).fit(bold.reshape(-1, 1), y.reshape(-1))
    assert fitted.slope_ == pytest.approx(theirs.coef_.item(), rel=1e-3)
    assert fitted.intercept_ == pytest.approx(theirs.intercept_.item(), rel=1e-3, abs=1e-3)


def test_platt_scaling_of_margins_that_say_nothing():
    y = np.tile([0.0, 0.0, 0.0, 1.0], 50)[:, None]
    fitted = PlattScaling().fit(np.zeros_like(y), y)
    assert fitted.intercept_ == pytest.approx(logit(0.25), abs=1e-3)


def test_weights_are_not_bent_to_balance_classes(drawn):
    """Where one answer in fifty is right, one in fifty is said to be right."""
    x, _, _ = drawn
    y = (np.random.default_rng(1).random((len(x), 3)) < 0.02).astype(np.float32)
    for estimator in every_kind():
        assert expit(estimator.fit(x, y).margins(x)).mean() == pytest.approx(y.mean(), rel=0.05)
