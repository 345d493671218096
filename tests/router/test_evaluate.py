"""A router judged on test rows: claims that hold where they are true, and fall where they are not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from export.runtime.routing.policy import priced_at
from export.runtime.routing.router_graph import read_priced
from router.graph.ask import ask_graph
from router.labels import read_table
from router.metrics import Resamples, gain_samples, interval
from router.policy import Outcome, choose, follow
from router.report.evaluate import evaluate, router_of_labels, steps
from router.report.summary import claims, lines, verdict
from tests.support.judged import fit_into
from tests.support.labels_maker import (
    QUESTION_DECIDES,
    Kind,
    Recipe,
    alter,
    kinds,
    make_labels,
)

pytestmark = pytest.mark.usefixtures("quickly")


def test_a_question_that_decides_is_beaten(made):
    _, _, e = made("question")
    assert all(at.gain.low > 0 for at in e.policy("router").at)
    assert any(at.gain.low > 0 for at in e.policy("lookup by task").at)
    assert claims(e)[1].startswith("holds: the router lies above every mix")
    # No kind was said to be decided by the picture, so nothing is claimed of it.
    assert e.picture_mean is None
    assert any(claim.startswith("not tested: whether reading the picture helps") for claim in claims(e))
    assert "points above mixing fixed scales" in verdict(e)
    assert not e.flat


def test_the_question_alone_does_as_well_where_it_decides(made):
    _, _, e = made("question")
    for ours, theirs in zip(e.policy("router").at, e.policy("question only").at, strict=True):
        assert abs(ours.gain.value - theirs.gain.value) < 0.03
    assert all(at.gain.value < 0.02 for at in e.policy("image only").at)


def test_shuffled_labels_gain_nothing(made):
    for name in ("question", "picture"):
        assert all(at.gain.value < 0.02 for at in made(name)[2].policy("shuffled labels").at)


def test_a_picture_that_decides_is_read(made):
    _, _, e = made("picture")
    assert e.picture_tasks == ["colour", "letter"]
    assert e.picture_mean.low > 0
    assert any(
        claim.startswith("holds: where the picture decides (colour, letter), reading it beats") for claim in claims(e)
    )
    for blind in ("question only", "lookup by task"):
        assert all(at.gain.value < 0.02 for at in e.policy(blind).at)
    assert any("router minus question only" in line for line in lines(e))


def test_where_the_picture_only_is_said_to_decide_the_claim_falls(tmp_path):
    """The question decides, though the data set names its kinds as decided by the picture: both routers gain alike."""
    make_labels(tmp_path / "labels", Recipe(kinds=kinds(easy=Kind(-3.0, "picture"), fine=Kind(3.5, "picture"))))
    table = read_table(tmp_path / "labels")
    folder = fit_into(tmp_path / "router", table)
    e = evaluate(folder, router_of_labels(folder, table, tmp_path / "labels"), table, lambda steps: None)
    assert all(at.gain.low > 0 for at in e.policy("router").at)
    assert abs(e.picture_mean.value) < 0.02
    assert any(claim.startswith("NOT SHOWN: where the picture decides (easy, fine)") for claim in claims(e))


def slow_mix(probability, strange, test, budget):
    """Score and cost of each row where two prices beside a budget are mixed, found on a fine grid of prices."""
    finest, rows = len(test.cost) - 1, np.arange(len(test))
    found = []
    for price in np.geomspace(1e-5, 10, 20_000):
        choice = np.where(strange, finest, choose(probability, test.cost, price))
        spent = test.cost[choice]
        found.append((spent.mean(), test.scores[rows, choice], spent))
        if spent.mean() <= budget:
            break
    (over, *dear), (under, *cheap) = found[-2], found[-1]
    share = (budget - under) / (over - under)
    return [share * a + (1 - share) * b for a, b in zip(dear, cheap, strict=True)]


def test_every_policy_spends_exactly_the_budget_and_is_paired_with_the_lookup(made):
    """Score, cost, gain and lead once more, step by step, from the shipped file itself."""
    folder, table, e = made("question")
    ours, lookup, test = e.policy("router"), e.policy("lookup by task"), table.test_rows
    least = json.loads((folder / "router" / "router.json").read_text())["least_p_value"]
    probability, _, p_value = ask_graph(folder / "router" / "router.onnx", test, 0.0)
    resamples, gains = Resamples(test.groups), []
    for at, other in zip(ours.at, lookup.at, strict=True):
        score, cost = slow_mix(probability, p_value < least, test, at.budget)
        assert cost.mean() == pytest.approx(at.budget, abs=1e-9)
        assert (at.mean_cost, at.score) == pytest.approx((at.budget, score.mean()), abs=1e-3)
        gains.append(gain_samples(Outcome(score, cost), test.scores, test.cost, resamples))
        slow = interval(gains[-1])
        assert (at.gain.value, at.gain.low, at.gain.high) == pytest.approx((slow.value, slow.low, slow.high), abs=2e-3)
        assert at.ahead.value == pytest.approx(at.score - other.score, abs=1e-6)
        assert other.ahead.value == other.ahead.low == 0
    assert ours.mean_gain.value == pytest.approx(np.mean(gains, axis=0)[0], abs=1e-3)
    assert ours.mean_ahead.value == pytest.approx(np.mean([at.ahead.value for at in ours.at]), abs=1e-6)
    for policy in e.policies:
        assert all(at.mean_cost <= at.budget + 1e-9 for at in policy.at)


def test_a_budget_that_is_unsure_is_named(made):
    _, _, e = made("question")
    ours = e.policy("router")
    assert not any("it does so at" in claim for claim in claims(e))
    unsure = [replace(ours.at[0], gain=replace(ours.at[0].gain, low=-0.01)), *ours.at[1:]]
    named = claims(replace(e, policies=[replace(ours, at=unsure), *e.policies[1:]]))
    assert named[1].startswith(
        "NOT SHOWN: the router lies above every mix of two fixed scales (at the weakest budget, 4"
    )
    others = ", ".join(f"{at.budget:g}" for at in ours.at[1:])
    assert named[2] == f"holds: it does so at {others} tokens"
    assert named[3].startswith("holds: averaged over the budgets")


def test_noise_is_not_beaten_and_the_verdict_says_so(made):
    folder, _, e = made("noise")
    assert json.loads((folder / "router" / "router.json").read_text())["constant"]
    assert not any(at.gain.low > 0 for at in e.policy("router").at)
    assert verdict(e).startswith(
        "The router does not surely beat mixing two fixed scales at any stated budget (averaged "
    )
    assert verdict(e).endswith("until it does, use a fixed scale.")
    assert claims(e)[0].startswith("NOT SHOWN: at equal cost it beats a lookup by the kind of question")
    assert claims(e)[1].startswith("NOT SHOWN: the router lies above every mix")


def test_a_flat_ladder_is_said_loudly(made):
    _, _, e = made("flat")
    assert e.flat
    assert verdict(e).startswith("THE LADDER IS FLAT: from 1 token to 36 there are only ")
    assert lines(e)[0] == verdict(e)
    assert "use the cheapest scale" in verdict(e)


def test_a_ladder_that_falls_is_flat_and_one_of_few_rows_is_undecided(made):
    _, _, e = made("question")
    assert replace(e, steepness=replace(e.steepness, value=-0.3, low=-0.4, high=-0.2)).flat
    few = replace(e, steepness=replace(e.steepness, value=0.06, low=-0.01, high=0.13))
    assert (few.flat, few.undecided) == (False, True)


def test_a_kind_that_was_not_learned_is_named_and_left_out(made):
    _, _, e = made("guessed")
    assert e.ladder["hard"][-1] < 0.6
    assert e.not_learned == ["where"]
    assert e.picture_tasks == ["colour"]
    assert "left out, since even the finest scale has not learned them: where" in claims(e)
    assert next(line for line in lines(e) if "(not learned)" in line).split()[0] == "where"
    assert e.picture_mean.low > 0


def test_figures_of_the_shipped_file_itself(made):
    """Score, cost and gain at a budget, once more and step by step."""
    folder, table, e = made("question")
    test = table.test_rows
    probability, choices, p_value = ask_graph(folder / "router" / "router.onnx", test, e.default_price)
    least = json.loads((folder / "router" / "router.json").read_text())["least_p_value"]
    choices = np.where(p_value < least, 3, choices)
    np.testing.assert_array_equal(e.choices, choices)
    chosen_score = [test.scores[i, k] for i, k in enumerate(choices)]
    assert e.default == pytest.approx((test.cost[choices].mean(), np.mean(chosen_score)))
    priced = read_priced(folder / "router" / "router.onnx")
    finest = np.eye(4)[3] * 1e6
    on_test = np.where((p_value < least)[:, None], finest, probability)
    for at in e.policy("router").at:
        price = priced_at(priced, at.budget)
        outcome = follow(choose(on_test, test.cost, price), test.scores, test.cost)
        assert (at.asked_cost, at.asked_score) == pytest.approx(outcome.mean)
        assert at.asked_cost < 1.35 * at.budget
        assert f"{at.asked_cost:.2f} for {at.budget:g}" in "\n".join(lines(e))
    assert e.ladder["all"] == pytest.approx(test.scores.mean(axis=0).tolist())
    assert e.rows == len(test) == 1200
    assert e.groups == 120
    assert [at.budget for at in e.policy("router").at] == [4, 9, 18]
    for share in e.chosen.values():
        assert sum(share) == pytest.approx(1)
    assert set(e.chosen) == {"all", *QUESTION_DECIDES}


def test_budgets_where_no_stated_one_lies_between_the_costs(tmp_path):
    make_labels(tmp_path / "labels", Recipe(rows=600, groups=60))
    alter(tmp_path / "labels", facts={"cost": [100.0, 120.0, 150.0, 400.0], "cost_unit": "ms"})
    table = read_table(tmp_path / "labels")
    folder = fit_into(tmp_path / "router", table)
    e = evaluate(folder, router_of_labels(folder, table, tmp_path / "labels"), table, lambda steps: None)
    assert [at.budget for at in e.policy("router").at] == [200]
    assert any("at exactly a mean of so many ms" in line for line in lines(e))


def test_progress_is_told_of_every_step(made):
    folder, table, _ = made("noise")
    told = []
    evaluate(folder / "router", router_of_labels(folder / "router", table, folder / "labels"), table, told.append)
    assert sum(told) == steps(False, table)
