"""What prices come to on rows that a router has not seen: of what ships, put right by what its folds tell."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from export.runtime.routing.policy import Policy, Seen, priced_at, sigmoid
from router.estimators.base import PlattScaling, ScaleEstimator
from router.fit.spending import Fold, Spending, spending_of

COST = np.array([1.0, 4.0, 9.0, 36.0, 144.0])
POLICY = Policy(COST, 144.0)
PRICES = np.concatenate([[0.0], np.geomspace(1e-3, 10, 300)])
BUDGETS = (6.0, 18.0, 60.0)


def drawn(rows: int, *, seed: int, sharp: float, lean: float) -> Seen:
    """Rows by a fit that is so sure of itself, and leans so far to finer scales; one in fifty is strange."""
    random = np.random.default_rng(seed)
    needs = random.normal(size=(rows, 1))
    ladder = np.array([-1.5, -0.5, 0.2, 0.8, 1.0]) + lean * np.arange(5)
    return Seen(sigmoid(sharp * (ladder - needs)), random.random(rows) < 0.02)


def test_a_budget_is_kept_on_rows_that_were_not_seen():
    """Folds lean one way and what ships another; of rows that it has seen each fit is surer than of others."""
    folds = [
        Fold(drawn(4000, seed=i, sharp=1.5, lean=lean), drawn(2000, seed=10 + i, sharp=1.3, lean=lean))
        for i, lean in enumerate((-0.04, 0.0, -0.02))
    ]
    own, new = drawn(6000, seed=20, sharp=1.5, lean=0.04), drawn(6000, seed=21, sharp=1.3, lean=0.04)
    priced = Spending(own, own.take(slice(0)), folds).priced(POLICY, PRICES)
    of_folds = Seen(*(np.concatenate([getattr(f.unseen, name) for f in folds]) for name in ("probability", "strange")))
    off = {"here": [], "own rows": [], "out of fold": []}
    for budget in BUDGETS:
        for how, price in (("here", priced_at(priced, budget)), ("own rows", POLICY.price_for(own, budget)),
                           ("out of fold", POLICY.price_for(of_folds, budget))):  # fmt: skip
            off[how].append(abs(POLICY.mean_cost(new, price) / budget - 1))
    assert max(off["here"]) < 0.08
    assert max(off["own rows"]) > 0.3
    assert max(off["out of fold"]) > 0.3


def test_costs_never_rise_with_the_price_and_stay_between_the_scales():
    fold = Fold(drawn(500, seed=0, sharp=4.0, lean=0.3), drawn(500, seed=1, sharp=0.2, lean=-0.3))
    own = drawn(500, seed=2, sharp=4.0, lean=0.3)
    priced = Spending(own, own.take(slice(0)), [fold]).priced(POLICY, PRICES)
    assert all(a < b and dear > cheap for (a, dear), (b, cheap) in pairwise(priced))
    assert COST[0] <= priced[-1][1] <= priced[0][1] <= COST[-1]


def test_rows_set_apart_count_as_they_are():
    own, apart = drawn(300, seed=0, sharp=1.0, lean=0.0), drawn(100, seed=1, sharp=1.0, lean=0.5)
    found = Spending(own, apart, []).mean_costs(POLICY, np.array([0.1]))
    both = 0.75 * POLICY.mean_cost(own, 0.1) + 0.25 * POLICY.mean_cost(apart, 0.1)
    assert found == pytest.approx([both])


class Remembers(ScaleEstimator):
    """What it has been told of a row, and nought of others: margins are the first feature, where it was seen."""

    def __init__(self, rows):
        self.rows = set(rows)

    def margins(self, x):
        return np.array([[value if value in self.rows else 0.0] * 5 for value in x[:, 0]]) * np.arange(5)


def test_each_fold_is_asked_of_what_it_has_seen_and_of_the_rest():
    x = np.arange(6.0)[:, None]
    seen = Seen(np.full((6, 5), 0.5), np.zeros(6, bool))
    calibration = PlattScaling()
    calibration.slope_, calibration.intercept_ = 1.0, 0.0
    apart = np.array([False] * 6)
    held_in = [np.array([2, 3, 4, 5]), np.array([0, 1])]
    fits = [(rows, [Remembers(x[rows, 0]), Remembers([])]) for rows in held_in]
    found = spending_of(seen, apart, x, Remembers(x[:, 0]), fits, calibration)
    assert [fold.seen.probability[:, 1].tolist() for fold in found.folds] == [
        sigmoid(x[rows, 0] / 2).tolist() for rows in held_in
    ]
    assert [len(fold.unseen.strange) for fold in found.folds] == [2, 4]
    assert all((fold.unseen.probability == 0.5).all() for fold in found.folds)
    assert found.own.probability[:, 1].tolist() == sigmoid(x[:, 0]).tolist()
    alone = replace(found, folds=())
    assert alone.mean_costs(POLICY, np.array([0.0])) == pytest.approx([POLICY.mean_cost(found.own, 0.0)])
