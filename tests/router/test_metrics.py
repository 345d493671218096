"""Intervals by resampling groups, and the other figures, each against the slow obvious way."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from router.metrics import (
    RESAMPLES,
    Interval,
    Resamples,
    gain_samples,
    interval,
    ladder,
    oracle,
    regrets,
    reliability,
)
from router.policy import Outcome, best_mix, choose, costs_of, follow
from router.report.budgets import Contender, samples

COST = np.array([1.0, 4.0, 9.0, 36.0])


@pytest.fixture
def rows():
    """Scores (n, K) and groups (n,) of very different sizes."""
    random = np.random.default_rng(0)
    groups = random.choice([f"g{i}" for i in range(15)], size=90, p=np.arange(1, 16) / 120)
    return random.random((90, 4)), groups


def resampled_rows(groups):
    """The rows of each resample, written out: every group as often as it was drawn."""
    names = np.unique(groups)
    counts = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    yield np.arange(len(groups))
    for drawn in counts:
        parts = [np.flatnonzero(groups == name) for name, times in zip(names, drawn, strict=True) for _ in range(times)]
        yield np.concatenate(parts)


def test_means_are_those_of_resampled_rows(rows):
    scores, groups = rows
    resamples = Resamples(groups)
    by_scale, first = resamples.mean(scores), resamples.mean(scores[:, 0])
    assert by_scale.shape == (1 + RESAMPLES, 4)
    for r, taken in enumerate(resampled_rows(groups)):
        np.testing.assert_allclose(by_scale[r], scores[taken].mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(first[r], scores[taken, 0].mean(), rtol=1e-12)


def test_gains_are_those_of_resampled_rows_with_the_hull_drawn_anew(rows):
    scores, groups = rows
    outcome = follow(np.random.default_rng(1).integers(4, size=90), scores, COST)
    slow = [
        outcome.score[taken].mean() - best_mix(COST, scores[taken].mean(axis=0), outcome.cost[taken].mean())
        for taken in resampled_rows(groups)
    ]
    fast = gain_samples(outcome, scores, COST, Resamples(groups))
    np.testing.assert_allclose(fast, slow, atol=1e-12)
    whole = interval(gain_samples(outcome, scores, COST, Resamples(groups)))
    assert whole.value == pytest.approx(slow[0])
    assert (whole.low, whole.high) == pytest.approx(tuple(np.percentile(slow[1:], [2.5, 97.5])))


def test_intervals_of_groups_are_wider_than_those_of_rows():
    """Ten equal rows in each picture are one observation, not ten."""
    random = np.random.default_rng(0)
    values = np.repeat(random.random(40), 10)
    by_group = interval(Resamples(np.repeat(np.arange(40).astype(str), 10)).mean(values))
    by_row = interval(Resamples(np.arange(400).astype(str)).mean(values))
    assert by_group.value == pytest.approx(by_row.value)
    assert by_group.high - by_group.low > 2.5 * (by_row.high - by_row.low)


def test_an_interval_for_people():
    gain = Interval(0.0123, -0.004, 0.03)
    assert gain.points() == "+1.2 [-0.4, +3.0]"
    assert not gain.excludes_zero
    assert Interval(0.1, 0.01, 0.2).excludes_zero
    assert Interval(-0.1, -0.2, -0.01).excludes_zero


def test_a_fixed_scale_gains_nothing_over_the_hull(rows):
    scores, groups = rows
    scores = np.sort(scores, axis=1)
    for k in range(4):
        gain = interval(gain_samples(follow(np.full(90, k), scores, COST), scores, COST, Resamples(groups)))
        assert gain.value <= 1e-12


@pytest.mark.parametrize("price", [0.0, 0.3])
def test_regret_is_what_knowing_the_scores_would_have_brought(rows, price):
    scores, _ = rows
    choice = choose(np.random.default_rng(2).random((90, 4)), COST, price)
    lost = regrets(choice, scores, COST, price)
    for i, row in enumerate(scores):
        worth = [row[k] - price * COST[k] / 36 for k in range(4)]
        assert lost[i] == pytest.approx(max(worth) - worth[choice[i]])
    assert regrets(choose(scores, COST, price), scores, COST, price).max() == 0


def test_the_oracle_takes_the_cheapest_of_the_best():
    scores = np.array([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1.0]])
    assert oracle(scores, COST).cost.tolist() == [4, 1, 36]
    assert oracle(scores, COST).score.tolist() == [1, 0, 1]


def test_the_ladder_of_all_and_of_each_kind(rows):
    scores, _ = rows
    tasks = np.where(np.arange(90) % 3 == 0, "a", "b")
    steps = ladder(scores, tasks)
    assert list(steps) == ["all", "a", "b"]
    assert steps["a"] == pytest.approx([np.mean([scores[i, k] for i in range(0, 90, 3)]) for k in range(4)])
    assert steps["all"] == pytest.approx(scores.mean(axis=0).tolist())


def test_reliability_of_probabilities_that_mean_what_they_say_and_of_others():
    random = np.random.default_rng(0)
    probability = random.random(20000)
    score = (random.random(20000) < probability).astype(float)
    honest, bold = reliability(probability, score), reliability(probability**3, score)
    assert honest.error < 0.02
    assert bold.error == pytest.approx(0.25, abs=0.01)  # the mean of p - p**3 over 0 to 1
    assert len(honest.probability) == 15
    assert honest.probability == sorted(honest.probability)
    assert reliability(np.array([0.2, 0.9]), np.array([0.0, 1.0])).score == [0, 1]
    same = reliability(np.full(40, 0.25), np.tile([0.0, 0.0, 0.0, 1.0], 10))  # a constant router says no more
    assert (same.probability, same.score, same.error) == ([0.25], [0.25], 0)


def test_outcomes_are_paired():
    """Two policies that differ by the same amount on every picture have a difference without spread."""
    random = np.random.default_rng(0)
    scores, groups = np.sort(random.random((60, 4)), axis=1), np.arange(60).astype(str)
    resamples = Resamples(groups)
    one = Outcome(scores[:, 1], np.full(60, 4.0))
    other = Outcome(scores[:, 1] + 0.1, np.full(60, 4.0))
    samples = gain_samples(other, scores, COST, resamples) - gain_samples(one, scores, COST, resamples)
    difference = interval(samples)
    assert (difference.low, difference.high) == pytest.approx((0.1, 0.1))


def test_what_rounding_leaves_is_no_gain():
    """A policy that knows nothing of a row mixes the very scales of the hull; its scores are in single precision."""
    random, cost = np.random.default_rng(0), np.array([1.0, 4.0, 9.0, 36.0])
    known = np.array([0.3, 0.6, 0.86, 0.946])
    scores = (random.random((800, 4)) < known).astype(np.float32)
    test = SimpleNamespace(scores=scores, costs=costs_of(cost))
    said = np.tile(known, (800, 1))
    gains = samples(
        Contender.plain("same", said, said, cost), test, [4.0, 9.0, 18.0], Resamples(np.repeat(np.arange(80), 10))
    )  # fmt: skip
    assert (gains == 0).all()
