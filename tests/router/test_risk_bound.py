"""Promises: kept in draws from a known distribution where the naive choice breaks them, and refused with a reason."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom

from export.runtime import MvlmError
from router.fit.risk_bound import (
    CALIBRATION_SHARE,
    PRICES,
    RiskBound,
    Wanted,
    loss_of_pictures,
    p_value,
    risk_bound,
    set_apart,
)
from router.policy import choose

COST = np.array([1.0, 4.0, 9.0, 36.0, 144.0])
WITHIN, DRAWS, PICTURES, ROWS_EACH = 0.02, 200, 250, 3


@pytest.fixture(scope="module")
def world():
    """True probabilities (n, K), what a router says of them, and the true loss at each price (J,)."""
    random = np.random.default_rng(0)
    need = random.normal(3, 2.5, 20_000)
    truth, said = (
        0.2 + 0.75 * expit(1.3 * (np.log2(COST) - (need + random.normal(0, noise, len(need)))[:, None]))
        for noise in (0.0, 1.0)
    )
    truth = 0.2 + 0.75 * expit(1.3 * (np.log2(COST) - need[:, None]))
    rows = np.arange(len(truth))
    losses = [(truth[:, -1] - truth[rows, choose(said, COST, price)]).mean() for price in PRICES]
    return truth, said, np.array(losses)


def drawn(world, seed):
    """Rows of a calibration set: what the router says, drawn scores, pictures of several rows with luck in common."""
    truth, said, _ = world
    random = np.random.default_rng(seed)
    rows = random.integers(len(truth), size=PICTURES * ROWS_EACH)
    groups = np.repeat(np.arange(PICTURES), ROWS_EACH)
    luck = random.random((PICTURES, 1))[groups]
    alone = random.random((len(rows), len(COST)))
    shared = random.random((len(rows), 1)) < 0.5
    return said[rows], (np.where(shared, luck, alone) < truth[rows]).astype(np.float32), groups.astype(str)


@pytest.mark.parametrize("bound", ["net", "harm"])
def test_the_risk_bound_is_broken_in_at_most_a_tenth_of_the_draws_and_the_naive_choice_more_often(world, bound):
    losses, wanted = world[2], Wanted((WITHIN,), 0.9, bound)
    broken = naive = given = 0
    for seed in range(DRAWS):
        said, scores, groups = drawn(world, seed)
        found = risk_bound(said, np.zeros(len(said), bool), scores, groups, COST, WITHIN, wanted)
        if found.price is not None:
            given += 1
            broken += losses[PRICES.tolist().index(found.price)] > WITHIN
        if bound == "net":
            rows = np.arange(len(said))
            seen = [(scores[:, -1] - scores[rows, choose(said, COST, p)]).mean() for p in PRICES]
            naive += losses[np.flatnonzero(np.array(seen) <= WITHIN).max(initial=0)] > WITHIN
    assert given > DRAWS / 2
    assert broken <= 0.1 * DRAWS
    if bound == "net":
        assert naive > 0.2 * DRAWS


def test_rows_of_one_picture_are_set_apart_together():
    groups = np.repeat(np.arange(50), 4).astype(str)
    apart = set_apart(groups, seed=1)
    assert apart.sum() == 4 * round(CALIBRATION_SHARE * 50)
    assert not set(groups[apart]) & set(groups[~apart])
    np.testing.assert_array_equal(apart, set_apart(groups, seed=1))
    assert (apart != set_apart(groups, seed=2)).any()


def test_losses_are_counted_by_picture():
    scores = np.array([[0, 1], [1, 1], [1, 0], [0, 1]], np.float32)
    groups = np.array(["a", "a", "b", "c"])
    choice = np.zeros(4, int)
    assert sorted(loss_of_pictures(choice, scores, groups, "net")) == [-1.0, 0.5, 1.0]
    harm = loss_of_pictures(choice, scores, groups, "harm")
    assert sorted(harm) in ([0.0, 0.0, 1.0], [0.0, 1.0, 1.0])
    assert not loss_of_pictures(choice + 1, scores, groups, "net").any()


def test_the_exact_test_is_the_binomial():
    losses = np.array([1.0] * 3 + [0.0] * 497)
    assert p_value(losses, 0.02, "harm") == pytest.approx(binom.cdf(3, 500, 0.02))


def test_bets_win_where_the_loss_is_low_and_not_where_it_is_high():
    random = np.random.default_rng(0)
    low, high = (np.where(random.random(800) < rate, 1.0, 0.0) for rate in (0.002, 0.03))
    assert p_value(low, 0.02, "net") < 0.01
    assert p_value(high, 0.02, "net") > 0.1
    assert p_value(np.zeros(1), 0.02, "net") > 0.9


def test_too_few_rows_say_how_many_are_needed(world):
    said, scores, groups = (part[:120] for part in drawn(world, 0))
    found = risk_bound(said, np.zeros(120, bool), scores, groups, COST, 0.01, Wanted((0.01,)))
    assert found.price is None
    assert found.rows_needed > 120
    words = found.words("tokens")
    assert re.fullmatch(
        r"NOT within 1 points of the finest at 90 % confidence with these 120 rows: about [\d,]+ would be needed", words
    )


def test_so_many_rows_as_were_said_to_be_needed_are_enough_in_most_draws(world):
    """The estimate is of the right size: with that many rows a risk bound can mostly be given."""
    said, scores, groups = drawn(world, 3)
    some = slice(0, 150)
    needed = risk_bound(
        said[some], np.zeros(150, bool), scores[some], groups[some], COST, WITHIN, Wanted((WITHIN,))
    ).rows_needed
    assert needed is not None
    given = 0
    for seed in range(20):
        parts = [drawn(world, 100 * seed + i) for i in range(-(-needed // (PICTURES * ROWS_EACH)))]
        said, scores = (np.concatenate([part[i] for part in parts])[:needed] for i in (0, 1))
        groups = np.concatenate([np.char.add(part[2], f"-{i}") for i, part in enumerate(parts)])[:needed]
        given += (
            risk_bound(said, np.zeros(needed, bool), scores, groups, COST, WITHIN, Wanted((WITHIN,))).price is not None
        )
    assert given >= 10


@pytest.mark.parametrize("bound", ["net", "harm"])
def test_a_router_that_is_always_worse_can_risk_bound_nothing(bound):
    scores = np.tile(np.float32([0, 1]), (300, 1))
    said = np.tile([0.9, 0.1], (300, 1))
    found = risk_bound(said, np.zeros(300, bool), scores, np.arange(300).astype(str), np.array([1.0, 2.0]), 0.01,
                    Wanted((0.01,), bound=bound))  # fmt: skip
    assert found.price is None
    assert found.rows_needed is None
    assert found.words("tokens").startswith("NOT within 1 points")
    assert "at every price the router loses more" in found.words("tokens")


def test_unfamiliar_rows_go_to_the_finest_scale_and_lose_nothing():
    scores = np.tile(np.float32([0, 1]), (400, 1))
    said = np.tile([0.9, 0.1], (400, 1))
    strange = np.ones(400, bool)
    found = risk_bound(said, strange, scores, np.arange(400).astype(str), np.array([1.0, 2.0]), 0.01, Wanted((0.01,)))
    assert found.price == PRICES[-1]
    assert found.mean_cost == 2.0


def test_in_words():
    kept = RiskBound(0.01, 0.9, "net", None, 900, 0.04, 83.2, None)
    assert kept.words("tokens") == (
        "within 1 points of the finest at 90 % confidence, at a mean of 83.2 tokens (price 0.04, 900 rows)"
    )
    lost = RiskBound(0.01, 0.9, "net", "letter", 900, None, None, 2000)
    assert lost.words("tokens") == (
        "NOT letter: within 1 points of the finest at 90 % confidence with these 900 rows: about 2,000 would be needed"
    )


@pytest.mark.parametrize("within", [0.0, 1.0, -0.01, float("nan")])
def test_losses_that_are_none(within):
    with pytest.raises(MvlmError, match="is no loss: give one above 0 and below 100 %, as 1%"):
        Wanted((within,))


@pytest.mark.parametrize("confidence", [0.2, 1.0, 9.0, float("nan")])
def test_confidences_that_are_none(confidence):
    with pytest.raises(MvlmError, match="bounds nothing: give one from 50 % to below 100 %"):
        Wanted((0.01,), confidence)
