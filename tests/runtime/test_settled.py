"""`auto` does not lose time: one fixed scale where choosing costs more than it brings, and what is in the cache."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from export.runtime import MvlmError, Runtime
from export.runtime.routing.costs import Composed, CostTable
from export.runtime.routing.parts import Parts, Work
from export.runtime.routing.policy import Policy, Seen
from export.runtime.routing.router import Terms
from export.runtime.routing.settled import settle, settle_within, with_cache
from tests.support.bundles import nested_pool_bundle, pool_bundle
from tests.support.tiny import QUESTIONS, SCALES, drawn_picture

COSTS = np.array([10.0, 11.0, 13.0, 22.0, 60.0])
RULE = {"now": [-1.0, 1.5, 0.3, 0.0], "finer": [0.5, 0.0, 0.0, 0.6]}
PRICES = (0.0, 0.02, 0.1, 0.3, 1.0, 5.0)


@pytest.fixture(scope="module")
def seen():
    """Rows some of which need many tokens and others few, as a router would have told."""
    random = np.random.default_rng(0)
    need = random.choice([0.0, 7.0], 300)[:, None]
    probability = 0.2 + 0.7 / (1 + np.exp(need - np.log2(SCALES)))
    return Seen(probability, random.random(300) < 0.02, random.random((300, 5)))


@pytest.mark.parametrize("rule", [None, RULE])
def test_auto_is_worth_no_less_than_choosing_and_than_every_scale(seen, rule):
    routed = set()
    for price in PRICES:
        for overhead in (0.01, 1.0, 9.0):
            policy = Policy(COSTS, 60.0, rule)
            at = settle(policy, seen, price, overhead)
            fixed = [float((seen.probability[:, k] - price * (COSTS[k] - overhead) / 60).mean()) for k in range(5)]
            choosing = policy.worth(seen, price)
            assert (at is None) == (choosing > max(fixed))
            if at is not None:
                assert fixed[at] == max(fixed)
            routed.add((overhead, at is None))
    assert {(0.01, True), (9.0, False)} <= routed


@pytest.mark.parametrize("rule", [None, RULE])
def test_the_worth_of_a_policy_row_by_row(seen, rule):
    policy = Policy(COSTS, 60.0, rule)
    decided, worth = policy.decide(seen, 0.2), []
    for row in range(300):
        first, last = decided.first[row], decided.last[row]
        right = seen.probability[row, last]
        if last != first:
            logit = math.log(right / (1 - right))
            right = 1 / (1 + math.exp(-(RULE["finer"][0] + RULE["finer"][3] * logit)))
        worth.append(right - 0.2 * decided.cost[row] / 60)
    assert policy.worth(seen, 0.2) == pytest.approx(np.mean(worth))
    assert rule is None or (decided.first != decided.last).any()


def test_a_cap_bounds_the_fixed_scale_too(seen):
    policy = Policy(COSTS, 60.0)
    assert settle(policy, seen, 0.0, 9.0, cap=20.0) == 3  # 22 less 9
    assert settle(policy, seen, 0.0, 9.0, cap=5.0) == 2  # choosing itself costs more than that
    assert settle(policy, seen, 0.0, 9.0, cap=0.5) is None


@pytest.mark.parametrize("budget", [0.5, 4.0, 12.0, 25.0, 61.0])
def test_a_budget_takes_what_is_right_more_often(seen, budget):
    for overhead in (0.01, 5.0, 9.9):
        policy = Policy(COSTS, 60.0)
        price = policy.price_for(seen, budget)
        at = settle_within(policy, seen, price, overhead, budget)
        cheap = [k for k in range(5) if COSTS[k] - overhead <= budget]
        decided = policy.decide(seen, price)
        chosen = seen.probability[np.arange(300), decided.last].mean() if decided.cost.mean() <= budget else -1.0
        best = max(cheap, key=lambda k: seen.probability[:, k].mean(), default=None)
        if best is None:
            assert at is None
        else:
            assert at == (best if seen.probability[:, best].mean() >= chosen - 1e-12 else None)


def test_what_stands_in_the_cache_costs_as_the_coarsest():
    assert with_cache(COSTS, SCALES, (), nested=False).tolist() == COSTS.tolist()
    assert with_cache(COSTS, SCALES, (9, 144), nested=False).tolist() == [10, 11, 10, 22, 10]
    assert with_cache(COSTS, SCALES, (9,), nested=True).tolist() == [10, 10, 10, 19, 57]
    assert with_cache(COSTS, SCALES, (7,), nested=True).tolist() == COSTS.tolist()


def opened(made, overhead: float) -> Runtime:
    """A bundle on a device where scales cost `COSTS` and choosing is `overhead` of that."""
    runtime = Runtime.load(made.bundle, threads=1)
    by_scale = dict(zip(SCALES, COSTS.tolist(), strict=True))
    runtime.costs = CostTable(by_scale, 1, 5, 1.0, by_scale, by_scale, overhead)
    runtime.router = runtime.router.with_costs(by_scale, "ms", overhead)
    return runtime


def test_nothing_is_computed_where_it_cannot_pay():
    runtime = opened(pool_bundle(), 9.9)
    view = runtime.look(drawn_picture(1))
    answer = view.ask(QUESTIONS[0], price=2.0, max_new_tokens=2)
    assert "at this price worth more for every question than choosing for each, which takes 9.9 ms" in answer.reason
    assert "features_ms" not in answer.timings
    assert "sight" not in view.__dict__
    same = runtime.look(drawn_picture(1)).ask(QUESTIONS[0], answer.num_visual_tokens, max_new_tokens=2)
    assert (answer.text, answer.escalated) == (same.text, None)
    assert not answer.out_of_distribution
    assert list(answer.probabilities) == list(SCALES)
    # A least probability is met by choosing, and by nothing else; a budget by what is right more often.
    assert "for every question" not in view.choose(QUESTIONS[0], least_probability=0.5).reason
    assert view.seen_by_router
    view = runtime.look(drawn_picture(1))  # of which nothing was read
    # The cheapest scale costs 0.1 without choosing, so no more has to be allowed.
    within = view.choose(QUESTIONS[0], budget=0.2)
    assert "within this budget right more often for every question than choosing for each" in within.reason
    assert (within.scale, within.cost) == (1, pytest.approx(0.1))
    assert view.choose(QUESTIONS[0], cap=0.2, price=0).scale == 1
    assert view.choose(QUESTIONS[0], cap=0.2, least_probability=0.1).scale == 1  # the cheapest of those that choose
    with pytest.raises(MvlmError, match=r"a budget of 0\.05 ms cannot be met"):
        view.choose(QUESTIONS[0], budget=0.05)
    assert runtime.router.settled(Terms(price=2.0)) is not None
    assert [choice.p_value for choice in view.choose_at(QUESTIONS[0], [3.0, 2.0])] == [None, None]


def test_where_choosing_is_free_it_chooses():
    runtime = opened(pool_bundle(), 0.0)
    choice = runtime.look(drawn_picture(1)).choose(QUESTIONS[0])
    assert choice.p_value is not None
    assert runtime.router.settled(Terms()) is None
    answer = runtime.look(drawn_picture(1)).ask(QUESTIONS[0], max_new_tokens=1)
    assert answer.timings["features_ms"] > 0


@pytest.mark.parametrize("made", [pool_bundle, nested_pool_bundle])
def test_the_choice_knows_what_was_read_already(made):
    runtime = opened(made(), 0.0)
    view = runtime.look(drawn_picture(2))
    dear = {"price": 1e4}
    assert view.choose(QUESTIONS[0], **dear).scale == 1
    view.ask(QUESTIONS[1], 36, max_new_tokens=1)
    assert view.shelf.ready() == (36,)
    known = view.choose(QUESTIONS[0], **dear)
    # What costs the same now is told apart by how likely it is right.
    free = [1, 36] if made is pool_bundle else [1, 4, 9, 36]
    assert known.scale == max(free, key=lambda m: (known.probabilities[m], -m))
    assert known.cost == COSTS[0]
    # Composed of parts: what is left to be read, of which a scale that is ready needs the question alone.
    around = runtime.reader.positions(QUESTIONS[0], 0, 0) - runtime.reader.lead.used
    line = ((1, 1.0), (1001, 1001.0))  # a millisecond a position
    parts = Parts(1.0, ((1, 5.0),), line, line, ((1, 2.0),), picture=0.5, question=0.25, router=0.25)
    work = {m: Work(1, 1, m, around + m, runtime.reader.lead.used) for m in SCALES}
    runtime.costs = replace(runtime.costs, composed=Composed(parts, parts, work, around))
    runtime.router = runtime.router.with_costs({m: parts.ms(work[m], 5) + 1.0 for m in SCALES}, "ms", 1.0)
    left = {m: m for m in SCALES} | ({36: 0} if made is pool_bundle else {m: max(0, m - 36) for m in SCALES})
    found = dict(zip(SCALES, runtime._here(view).costs, strict=True))
    made_of = {m: m if left[m] else 0 for m in SCALES}  # the connector's milliseconds
    written = 6 + 8 + 0.5  # the look, the further tokens, choosing for a picture that the router has seen
    assert found == pytest.approx({m: written + around + left[m] + made_of[m] for m in SCALES})
    assert runtime._here(view).overhead == 0.5
    assert runtime._here(runtime.look(drawn_picture(3))) is None
    with pytest.raises(MvlmError, match=f"the cheapest scale takes {around + 8} ms here"):
        view.choose(QUESTIONS[0], deadline_ms=around + 6)
    # Without a measurement nothing is known of what a cache spares.
    runtime.costs = None
    assert view.choose(QUESTIONS[0], **dear).scale == 1
