"""What a report takes apart: oracles, risk bounds, kinds of rows, half the tokens, and whether it is worth it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from router.fit.fit import fit_table
from router.fit.risk_bound import Wanted
from router.fit.write import write_router
from router.metrics import Interval
from router.policy import choose, price_for_budget
from router.report.breakdown import answer_kind, worst
from router.report.budgets import Contender
from router.report.evaluate import _half, evaluate
from router.report.summary import _held, claims, half, lines, worth_it

pytestmark = pytest.mark.usefixtures("quickly")


def test_json_of_an_evaluation_is_plain(made):
    for name in ("question", "picture", "noise"):
        _, _, e = made(name)
        plain = json.loads(json.dumps(e.to_json(), allow_nan=False))
        assert plain["flat"] is False
        assert plain["policies"][0]["name"] == "router"
        assert (plain["picture_mean"] is None) == (name != "picture")


def with_runs_and_margins(table, seed=0):
    """The same table run twice, with first tokens that lead where the answer is right, and with pictures of noise."""
    random = np.random.default_rng(seed)
    again = np.where(random.random(table.samples.shape) < 0.1, 1 - table.samples, table.samples)
    samples = np.concatenate([table.samples, again], axis=1).astype(np.float32)
    margins = (0.2 + 0.6 * samples[:, 0] + 0.2 * random.random(samples[:, 0].shape)).astype(np.float32)
    far = (table.image[:40] + 50, table.question[:40])
    return replace(
        table, samples=samples, margins=margins, ood_probes={"noise": far, "same": (table.image, table.question)}
    )


@pytest.fixture(scope="module")
def rich(made, tmp_path_factory):
    """A table with everything that labels may hold, fitted with a risk bound and without, and judged."""
    table = with_runs_and_margins(made("question")[1])
    found = {}
    for name, wanted in (("plain", None), ("bounded", Wanted((0.1, 0.0001), 0.8))):
        folder = tmp_path_factory.mktemp(name) / "router"
        folder.mkdir()
        fitted = fit_table(table.fit_rows, seed=0, progress=lambda fits: None, wanted=wanted)
        facts = write_router(folder, fitted, table.fit_rows, "")
        found[name] = fitted, facts, evaluate(folder, facts, table, lambda steps: None)
    return table, found


def test_the_oracle_without_its_luck_is_below_the_one_with_it(rich):
    table, found = rich
    e = found["plain"][2]
    test = table.test_rows
    slow = []
    for told, judged in ((0, 1), (1, 0)):
        choice = test.samples[:, told].argmax(axis=1)
        slow.append(test.samples[np.arange(len(test)), judged, choice].mean())
    assert e.cross_sample_oracle.score == pytest.approx(np.mean(slow))
    assert e.cross_sample_oracle.score < e.oracle.score
    assert 0 < e.share < 1.2
    assert any("chosen on one run, judged on another" in line for line in lines(e))


def test_the_luck_of_one_run_cannot_be_taken_out(made):
    _, _, e = made("question")
    assert e.cross_sample_oracle is None
    assert any("there is one sample of each row" in line for line in lines(e))


def test_an_escalation_that_pays_is_in_the_file_and_in_words(rich):
    fitted, facts, e = rich[1]["plain"]
    assert fitted.escalation.pays
    assert facts["escalation"]["on"]
    assert e.cascade
    assert all(point.mean_cost <= 1.3 * point.budget for point in e.cascade)
    bounded, bounded_facts, _ = rich[1]["bounded"]
    assert bounded.escalation is None
    assert bounded_facts["escalation"] is None


def test_what_a_risk_bound_came_to_on_the_test_rows(rich):
    _, _, e = rich[1]["bounded"]
    kept, lost = e.risk_bounds
    assert kept.loss.low <= 0.1
    assert lost.loss is None
    assert any(
        line.startswith("risk bound: within 10 points") and "on the test rows it lost" in line for line in lines(e)
    )
    assert any(line.startswith("risk bound: NOT within 0.01 points") for line in lines(e))


def test_pictures_of_noise_are_caught_and_ordinary_ones_are_not(rich):
    e = rich[1]["plain"][2]
    assert e.out_of_distribution["noise"] == 1
    assert e.out_of_distribution["same"] < 0.03
    assert e.strange < 0.03


def test_parts_are_those_of_the_rows(made):
    _, table, e = made("question")
    test = table.test_rows
    parts = {(part.kind, part.name): part for part in e.parts}
    assert {name for kind, name in parts if kind == "task"} == {"easy", "fine"}
    fine = test.tasks == "fine"
    chosen = test.scores[np.arange(len(test)), e.choices]
    part = parts["task", "fine"]
    assert part.rows == fine.sum()
    assert part.score == pytest.approx(chosen[fine].mean())
    assert part.finest == pytest.approx(test.scores[fine, -1].mean())
    assert part.difference.value == pytest.approx(part.score - part.finest)
    assert worst(e.parts).difference.value == min(p.difference.value for p in e.parts)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("Yes", "yes or no"), ("no", "yes or no"), ("12", "number"), ("-1.5", "number"), ("red", "one word"),
     ("top left", "several words"), ("", "")],
)  # fmt: skip
def test_kinds_of_answers(answer, kind):
    assert answer_kind(answer) == kind


def test_half_the_tokens_for_half_a_point(made):
    _, _, e = made("question")
    good = replace(e, half_cost=10.0, half=Interval(-0.001, -0.004, 0.002))
    assert half(good).startswith("holds: half the tokens for at most half a point less")
    unsure = replace(good, groups=100, half=Interval(-0.001, -0.009, 0.002))
    assert half(unsure).startswith("NOT SHOWN: half the tokens")
    assert "about 400 test pictures would decide, and there are 100" in half(unsure)
    dear, bad = replace(good, half_cost=30.0), replace(good, half=replace(e.half, value=-0.02))
    for one in (dear, bad):
        assert half(one).startswith("NOT SHOWN: half the tokens")
        assert "the oracle, luck included reaches" in half(one)


def test_half_is_read_from_the_fit_rows_and_kept_on_others(made):
    """Of many halves of one table, fit and test: where the price is read stays below half, and so does nearly every
    other half; a price at half itself is passed about every other time."""
    _, table, _ = made("question")
    random = np.random.default_rng(0)
    groups = np.unique(table.groups)
    probability = random.beta(0.6, 0.6, (len(table), 1)) * [0.2, 0.5, 0.6, 1.0][: len(table.scales)]
    assert probability.shape == table.scores.shape
    half_of_finest, over, naive_over = table.cost[-1] / 2, 0, 0
    for _ in range(40):
        seen = np.isin(table.groups, random.permutation(groups)[: len(groups) // 2])
        fit, test = table.take(seen), table.take(~seen)
        contender = Contender.plain("router", probability[seen], probability[~seen], table.cost)
        spent, lost = _half(contender, fit, test)
        assert spent > 0.8 * half_of_finest
        assert lost.low <= lost.value <= lost.high
        over += spent > half_of_finest
        price = price_for_budget(probability[seen], fit.cost, half_of_finest)
        naive_over += test.cost[choose(probability[~seen], test.cost, price)].mean() > half_of_finest
    assert over <= 3
    assert naive_over >= 10
    # A router that knows the scores loses nothing, and spends far less than half.
    spent, lost = _half(Contender.plain("router", fit.scores, test.scores, table.cost), fit, test)
    assert spent < 0.5 * half_of_finest
    assert lost.value >= -0.005
    # What is out of distribution gets the finest scale, and is paid for.
    strange = replace(contender, test=replace(contender.test, strange=np.ones(len(test), bool)))
    assert _half(strange, fit, test)[0] == table.cost[-1]


def test_is_it_worth_a_router(made):
    assert worth_it(made("flat")[2]).startswith("No: the ladder is flat")
    assert worth_it(made("noise")[2]).startswith("Not shown: the router is not surely above")
    _, _, e = made("picture")
    assert worth_it(e).startswith("Yes: +")
    router = e.policy("router")
    as_good = [replace(p, mean_gain=router.mean_gain) if p.name == "lookup by task" else p for p in e.policies]
    assert worth_it(replace(e, policies=as_good)).startswith("Only just: a table by task")


def test_what_scored_the_rows_is_told(made):
    _, table, e = made("question")
    assert table.scored_by == ""  # labels of before do not say it
    told = {"metrics": {"exact": 10, "agreement": 2}, "metrics_guessed": {"": "exact"}}
    scored = replace(table, facts=table.facts | told)
    assert scored.scored_by.startswith("scored by exact (10 rows), agreement (2 rows) (guessed); agreement says where")
    assert replace(scored, target="agreement").scored_by == ""
    assert "scored by number (3 rows)" in lines(replace(e, scored_by="scored by number (3 rows)"))


def test_what_is_not_shown_says_how_many_pictures_would_decide(made):
    _, _, e = made("noise")
    assert claims(e)[1].startswith("NOT SHOWN")
    one = replace(e, groups=50)
    assert "about 200 test pictures would decide" in _held(one, "it is so", Interval(0.01, -0.01, 0.03))
    assert "would decide" not in _held(one, "it is so", Interval(-0.01, -0.02, 0.01))
