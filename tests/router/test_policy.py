"""The decision: a price, a budget, ties, and what mixing fixed scales reaches, each against the slow obvious way."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest

from router.policy import best_mix, choose, follow, price_for_budget, price_table

COST = np.array([1.0, 4.0, 9.0, 36.0])


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.mark.parametrize("price", [0.0, 0.03, 0.4, 2.0])
def test_the_choice_is_the_best_utility(random, price):
    probability = random.random((200, 4))
    for row, chosen in zip(probability, choose(probability, COST, price), strict=True):
        assert chosen == max(range(4), key=lambda k: row[k] - price * COST[k] / 36)


def test_ties_go_to_the_cheaper():
    assert choose(np.array([[0.5, 0.5, 0.5, 0.5], [0.1, 0.7, 0.7, 0.2]]), COST, 0.0).tolist() == [0, 1]
    # At a price of 1 the last step costs 0.75, which is exactly what it brings.
    assert choose(np.array([[0.0, 0.0, 0.25, 1.0]]), np.array([1.0, 2.0, 8.0, 32.0]), 1.0).tolist() == [2]


def test_following_a_choice(random):
    scores = random.random((50, 4))
    choice = random.integers(4, size=50)
    outcome = follow(choice, scores, COST)
    assert outcome.score.tolist() == [scores[i, k] for i, k in enumerate(choice)]
    assert outcome.cost.tolist() == [COST[k] for k in choice]
    assert outcome.mean == (outcome.cost.mean(), outcome.score.mean())


def test_the_price_table_says_what_each_price_does(random):
    probability, scores = random.random((80, 4)), random.random((80, 4))
    points = price_table(probability, scores, COST)
    assert points[0].price == 0
    assert all(a.price < b.price and a.mean_cost > b.mean_cost for a, b in pairwise(points))
    assert points[-1].mean_cost == 1
    for point in points:
        assert (point.mean_cost, point.score) == follow(choose(probability, COST, point.price), scores, COST).mean


@pytest.mark.parametrize("budget", [1.0, 1.2, 4.0, 10.0, 25.0, 36.0, 100.0])
def test_a_budget_takes_the_smallest_price_within_it(random, budget):
    probability = random.random((60, 4))

    def mean_cost(price):
        return COST[choose(probability, COST, price)].mean()

    price = price_for_budget(probability, COST, budget)
    assert mean_cost(price) <= budget
    # The mean cost changes only at prices where two scales of some row are equally useful.
    rises = [
        36 * (row[b] - row[a]) / (COST[b] - COST[a]) for row in probability for a in range(4) for b in range(a + 1, 4)
    ]
    within = [p for p in [0.0, *sorted(r for r in rises if r > 0)] if mean_cost(p + 1e-12) <= budget]
    assert price == pytest.approx(within[0], abs=1e-9)


def test_a_budget_for_the_dearest_scale_costs_nothing():
    probability = np.tile([0.1, 0.2, 0.3, 0.4], (5, 1))
    assert price_for_budget(probability, COST, 36.0) == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_best_mix_against_all_mixes(seed):
    random = np.random.default_rng(seed)
    score = random.random(4)
    shares = np.linspace(0, 1, 2001)
    for budget in [1.0, 2.0, 4.0, 6.5, 9.0, 20.0, 36.0, 50.0]:
        best = -np.inf
        for a, b in combinations_with_replacement(range(4), 2):
            costs, scores = ((1 - shares) * v[a] + shares * v[b] for v in (COST, score))
            best = max(best, scores[costs <= budget + 1e-9].max(initial=-np.inf))
        # Shares lie on a grid, so that the slow way may miss the last step.
        assert best - 1e-12 <= best_mix(COST, score, budget) <= best + 1e-3


def test_no_mix_of_three_is_better():
    random = np.random.default_rng(0)
    score = random.random(4)
    for weights in random.dirichlet(np.ones(4) * 0.5, size=500):
        assert weights @ score <= best_mix(COST, score, weights @ COST) + 1e-12


def test_a_mix_is_taken_for_many_resamples_at_once():
    random = np.random.default_rng(0)
    scores, budgets = random.random((30, 4)), random.uniform(1, 40, 30)
    one_by_one = [best_mix(COST, score, budget) for score, budget in zip(scores, budgets, strict=True)]
    np.testing.assert_array_equal(best_mix(COST, scores, budgets), one_by_one)


def test_more_tokens_that_hurt_are_not_bought():
    falling = np.array([0.2, 0.8, 0.5, 0.4])
    assert best_mix(COST, falling, 36.0) == 0.8
    assert best_mix(COST, falling, 2.5) == pytest.approx(0.5)
    assert best_mix(COST, falling, 0.5) == 0.2
