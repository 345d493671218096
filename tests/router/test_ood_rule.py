"""What is out of distribution gets a share that it is worth: what the rule costs, and when the fit takes less."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from export.runtime.routing.policy import Policy, Seen
from router.fit.fit import fit_table
from router.fit.ood_rule import MOST, fit_ood_rule, shares
from router.fit.write import write_router
from router.labels import read_table
from router.metrics import Resamples
from router.report import summary
from router.report.evaluate import evaluate
from tests.support.labels_maker import Recipe, make_labels, quick

COST = np.array([1.0, 4.0, 9.0, 36.0, 144.0])
ROWS = 3999


@pytest.fixture(scope="module")
def ordinary():
    """Rows that need more or less, P that knows how much, and p-values that are even: (policy, seen, p, scores)."""
    random = np.random.default_rng(0)
    need = random.normal(3, 2.5, (8000, 1))
    probability = 0.1 + 0.85 / (1 + np.exp(need - 1.2 * np.log2(COST)))
    scores = (random.random((8000, 5)) < probability).astype(np.float64)
    # Ranks among as many as are kept; no ordinary row is stranger than all of them.
    p_value = (2 + random.permutation(8000) // 2) / (ROWS + 1)
    return Policy(COST, 144.0), Seen(probability, np.zeros(8000, bool)), p_value, scores


def test_shares_are_halved_down_to_what_is_stranger_than_all():
    assert shares(0.01, ROWS) == [0.01, 0.005, 0.0025, 0.00125, 0.000375]
    assert shares(0.0025, 119) == [1.5 / 120]  # of few rows no share is so small


def test_ordinary_rows_are_spared_what_they_gain_nothing_by(ordinary):
    policy, seen, p_value, scores = ordinary
    rule = fit_ood_rule(policy, seen, p_value, scores, 0.01, rows=ROWS)
    assert max(rule.costs_as_asked) > 2 * MOST
    assert rule.least_p_value < 0.01
    assert max(rule.costs) <= MOST
    assert rule.ordinary == pytest.approx((p_value < rule.least_p_value).mean())
    (said,) = rule.words("tokens")
    assert "of the 1 % that may" in said
    assert "all that may would cost" in said


def test_it_is_the_largest_share_that_costs_so_little(ordinary):
    """Every share above the chosen one costs too much at some budget, counted row by row."""
    policy, seen, p_value, scores = ordinary
    rule = fit_ood_rule(policy, seen, p_value, scores, 0.01, rows=ROWS, most=0.03)
    offered = shares(0.01, ROWS)
    assert rule.least_p_value in offered[1:-1]
    never = slow_scores(seen.probability, np.zeros(len(p_value), bool), scores, rule.budgets)
    for least in offered[: offered.index(rule.least_p_value) + 1]:
        costs = never - slow_scores(seen.probability, p_value < least, scores, rule.budgets)
        if least == rule.least_p_value:
            assert costs == pytest.approx(rule.costs, abs=1e-3)
        assert (max(costs) <= 0.03) == (least == rule.least_p_value)


def slow_scores(probability, strange, scores, budgets):
    """Right answers at exactly each budget, by the mix of the two prices beside it, from a grid."""
    points = []
    for price in np.geomspace(1e-3, 20, 400):
        choice = np.where(strange, 4, (probability - price * COST / 144).argmax(axis=1))
        points.append((COST[choice].mean(), scores[np.arange(len(choice)), choice].mean()))
    spent, got = np.array(points[::-1]).T
    return np.interp(budgets, spent, got)


def test_a_rule_that_pays_keeps_what_was_asked_for(ordinary):
    """Strange rows that only the finest scale answers, and that P knows nothing of, where no token is worth more than
    another: what they take from others is less than what they gain."""
    policy, _, p_value, _ = ordinary
    random = np.random.default_rng(1)
    probability = 0.05 + 0.8 * COST / 144 + random.normal(0, 1e-3, (8000, 5))
    hard = (random.random((8000, 5)) < probability).astype(np.float64)
    hard[p_value < 0.01] = [0, 0, 0, 0, 1]
    rule = fit_ood_rule(policy, Seen(probability, np.zeros(8000, bool)), p_value, hard, 0.01, rows=ROWS)
    assert rule.least_p_value == 0.01
    assert rule.costs == rule.costs_as_asked
    assert min(rule.costs) < -0.001
    assert "would cost" not in rule.words("tokens")[0]


def test_no_share_is_no_rule(ordinary):
    rule = fit_ood_rule(*ordinary, 0.0, rows=ROWS)
    assert (rule.least_p_value, rule.costs, rule.words("tokens")) == (0.0, (), [])


def test_a_fit_says_what_its_rule_costs_and_the_report_what_it_came_to(tmp_path):
    """Some ordinary rows are far from the others: the whole share that may be sent away would cost them a budget."""
    make_labels(tmp_path / "labels", Recipe(rows=1200, groups=120))
    table = read_table(tmp_path / "labels")
    far = np.random.default_rng(0).random((len(table), 1)) < 0.03
    table = replace(table, image=np.where(far, table.image * 12, table.image).astype(np.float32))
    with quick():
        fitted = fit_table(table.fit_rows, seed=0, progress=lambda fits: None, least_p_value=0.08)
        facts = write_router(tmp_path, fitted, table.fit_rows, "")
        e = evaluate(tmp_path, facts, table, lambda steps: None)
    kept = json.loads((tmp_path / "router.json").read_text())["out_of_distribution"]
    assert kept["asked"] == 0.08
    assert kept["least_p_value"] == fitted.least_p_value < 0.08
    assert max(kept["costs_as_asked"]) > MOST
    assert fitted.strange.mean() == pytest.approx(kept["ordinary"])
    assert e.ood_words == kept["words"]
    assert kept["words"][0] in summary.lines(e)
    assert any(line.startswith("points that this costs the ordinary test rows") for line in summary.lines(e))
    # Paired on the test rows: the same as scoring both by hand at the first budget.
    router, (budget, lost) = e.policy("router"), e.ood_costs[0]
    assert budget == router.at[0].budget
    assert lost.low <= lost.value <= lost.high
    assert len(Resamples(table.test_rows.groups).mean(table.test_rows.scores)) > 1
