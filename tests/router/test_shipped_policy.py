"""What is reported is the policy that ships: the device's choices, one by one, against prices, budgets and report."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from export.runtime.backends.onnx import Device
from export.runtime.manifest import RouterFacts
from export.runtime.routing.policy import NO_LOOK, Policy, Seen, escalations
from export.runtime.routing.router import Router, Terms
from router.fit.escalation import Escalation
from router.fit.fit import fit_table
from router.fit.write import write_router
from router.labels import read_table
from router.metrics import Interval
from router.report.evaluate import ESCALATING, evaluate
from tests.support.labels_maker import Recipe, make_labels, quick

SCALES = (1, 4, 9, 36)
# Unsure first tokens are wrong ones, and the finer answer is then mostly right.
RULE = {"now": [-1.0, 1.5, 0.3, 0.0], "finer": [0.5, 0.0, 0.0, 0.6]}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Labels with margins, some of whose ordinary rows are far from the others."""
    folder = make_at(tmp_path_factory.mktemp("labels"))
    found = read_table(folder)
    random = np.random.default_rng(0)
    margins = (0.2 + 0.6 * found.scores + 0.2 * random.random(found.scores.shape)).astype(np.float32)
    image = np.where(random.random((len(found), 1)) < 0.03, found.image * 12, found.image).astype(np.float32)
    return replace(found, margins=margins, image=image)


def make_at(folder):
    make_labels(folder / "labels", Recipe(rows=1200, groups=120))
    return folder / "labels"


@pytest.fixture(scope="module", params=["one look", "looking again"])
def shipped(request, table, tmp_path_factory):
    """A router folder, with a rule for an escalation that is on or off: (table, device's router, evaluation)."""
    with quick():
        fitted = fit_table(table.fit_rows, seed=0, progress=lambda fits: None, least_p_value=0.02, rule_costs=1)
        on = request.param == "looking again"
        gain = Interval(0.1, 0.05, 0.2) if on else Interval(-0.1, -0.2, -0.05)
        escalation = Escalation(RULE, gain)
        policy = replace(fitted.policy, rule=RULE if on else None)
        fitted = replace(fitted, escalation=escalation, policy=policy)
        folder = tmp_path_factory.mktemp("shipped")
        facts = write_router(folder, fitted, table.fit_rows, "")
        known = RouterFacts("router.onnx", SCALES, tuple(facts["costs"]), "tokens", facts["default_price"])
        router = Router(folder / "router.onnx", known, SCALES, Device())
        return router, evaluate(folder, facts, table, lambda steps: None), on


def asked(router, table, terms):
    """Every test row as a device answers it: what was spent, and the score of the answer, (n,) each."""
    test = table.test_rows
    spent, score = [], []
    for i in range(len(test)):
        choice = router.choose(test.image[i], test.question[i], terms)
        again = router.escalate(choice, float(test.margins[i, SCALES.index(choice.scale)]))
        choice = again or choice
        spent.append(choice.cost)
        score.append(test.scores[i, SCALES.index(choice.scale)])
    return np.array(spent), np.array(score)


def test_a_budget_is_what_the_device_spends_on_test_rows(shipped, table):
    router, e, _ = shipped
    for at in e.policy("router").at[::2]:
        spent, score = asked(router, table, Terms(budget=at.budget))
        # Both sides are means of a sample: the rows that the price was read from, and these.
        error = spent.std() * (2 / len(spent)) ** 0.5
        assert spent.mean() == pytest.approx(at.budget, abs=0.01 * at.budget + 2 * error)
        # The report's price is found by halving, the device's stands in a table.
        assert (spent.mean(), score.mean()) == pytest.approx((at.asked_cost, at.asked_score), rel=0.03)


def test_the_default_price_spends_and_scores_what_the_report_says(shipped, table):
    router, e, _ = shipped
    spent, score = asked(router, table, Terms())
    assert (spent.mean(), score.mean()) == pytest.approx(e.default)
    assert e.strange > 0.005


def test_both_ways_have_a_row(shipped):
    _, e, on = shipped
    other = "router, one look" if on else ESCALATING
    assert [policy.name for policy in e.policies][:2] == ["router", other]
    assert e.policy("router").at != e.policy(other).at


def test_other_costs_are_priced_by_rows_that_travel(shipped, table):
    """Where costs are replaced, a budget is kept as well, override and escalations included."""
    router = shipped[0].with_costs({1: 10.0, 4: 12.0, 9: 20.0, 36: 80.0}, "ms")
    spent, _ = asked(router, table, Terms(budget=25.0))
    assert spent.mean() == pytest.approx(25.0, rel=0.12)


@pytest.mark.parametrize("keeps_cache", [False, True])
@pytest.mark.parametrize(("cap", "least_probability"), [(np.inf, 0.0), (10.0, 0.0), (np.inf, 0.6), (10.0, 0.99)])
def test_decisions_one_by_one(keeps_cache, cap, least_probability):
    random = np.random.default_rng(0)
    cost = np.array([1.0, 4.0, 9.0, 36.0])
    probability = np.sort(random.random((300, 4)), axis=1)
    seen = Seen(probability, random.random(300) < 0.1, random.random((300, 4)))
    policy = Policy(cost, 36.0, RULE, keeps_cache)
    decided = policy.decide(seen, 0.2, cap=cap, least_probability=least_probability)
    for row in range(300):
        allowed = [k for k in range(4) if cost[k] <= cap]
        good = [k for k in allowed if probability[row, k] >= least_probability]
        worth = {k: probability[row, k] - (0.2 * cost[k] / 36 if good else 0) for k in good or allowed}
        first = max(allowed) if seen.strange[row] else max(worth, key=lambda k: (worth[k], -k))
        second = escalations(
            RULE, seen.margin[row, [first]], probability[[row]], np.array([first]), cost / 36, 0.2,
            keeps_cache=keeps_cache, cap=None if cap == np.inf else cap / 36,
        )[0]  # fmt: skip
        last = first if seen.strange[row] or second == NO_LOOK else second
        spent = cost[first] if last == first else cost[last] + (0 if keeps_cache else cost[first])
        assert (decided.first[row], decided.last[row], decided.cost[row]) == (first, last, spent)
    assert (decided.first != decided.last).any() or cap < 36
    assert decided.cost.max() <= cap


def test_the_file_says_what_it_was_priced_by(shipped):
    known = json.loads(json.dumps(shipped[0]._known))
    prices, costs = zip(*known["priced"], strict=True)
    assert list(prices) == sorted(prices)
    # Each second look pays for itself, so that a higher price may send a few more of them.
    assert all(dear <= 1.01 * cheap for cheap, dear in pairwise(costs))


def test_of_few_rows_those_stranger_than_all_are_out_of_distribution(table):
    """The smallest p-value that so few rows can give is above the share that is asked for."""
    few = table.fit_rows.take(np.arange(120))
    with quick():
        fitted = fit_table(few, seed=0, progress=lambda fits: None)
        off = fit_table(few, seed=0, progress=lambda fits: None, least_p_value=0.0)
    assert 1 / 121 < fitted.least_p_value < 2 / 121
    assert off.least_p_value == 0
    assert not off.strange.any()
