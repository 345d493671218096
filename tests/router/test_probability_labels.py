"""Labels that hold P(right): what is fitted on them, how they are calibrated, and the ceiling of who knows them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from export.runtime import MvlmError
from router.fit.fit import fit_table
from router.fit.write import PARITY, write_router
from router.graph.ask import ask_graph
from router.labels import read_table
from router.report.evaluate import evaluate
from router.report.summary import lines
from tests.support.labels_maker import PICTURE_DECIDES, alter, make_labels, quick

RECIPE = replace(PICTURE_DECIDES, rows=1000, groups=100)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A labels folder whose rows hold the probability that their scores were drawn from."""
    folder = tmp_path_factory.mktemp("labels") / "labels"
    truth = make_labels(folder, RECIPE)
    of = {scale: k for k, scale in enumerate(RECIPE.scales)}

    def tell(rows):
        return [row | {"probability": truth[int(row["id"][1:]), of[row["num_visual_tokens"]]]} for row in rows]

    return alter(folder, labels=tell), truth


def test_they_are_read_where_every_row_has_them(labels, tmp_path):
    folder, truth = labels
    table = read_table(folder)
    np.testing.assert_allclose(table.probability, truth, rtol=1e-6)
    np.testing.assert_array_equal(table.targets, table.probability)
    np.testing.assert_array_equal(table.test_rows.probability, table.probability[table.splits == "test"])
    # Agreement with the finest scale is another question.
    assert read_table(folder, "agreement").probability is None


@pytest.mark.parametrize(("metric", "taken"), [("exact", True), ("anls", False)])
def test_under_a_graded_metric_the_probability_of_one_answer_is_not_the_score(tmp_path, metric, taken):
    folder = tmp_path / "labels"
    make_labels(folder, replace(RECIPE, rows=240, groups=48))
    alter(folder, labels=lambda rows: [row | {"probability": 0.5, "metric": metric} for row in rows])
    assert (read_table(folder).probability is not None) == taken


@pytest.mark.parametrize("bad", [None, 1.5, -0.1])
def test_a_hole_leaves_the_scores_and_no_probability_is_a_fault(tmp_path, bad):
    folder = tmp_path / "labels"
    make_labels(folder, replace(RECIPE, rows=240, groups=48))
    alter(folder, labels=lambda rows: [row | {"probability": bad if i == 7 else 0.5} for i, row in enumerate(rows)])
    if bad is None:
        table = read_table(folder)
        assert table.probability is None
        np.testing.assert_array_equal(table.targets, table.scores)
    else:
        with pytest.raises(MvlmError, match="probabilities outside 0 to 1: r1"):
            read_table(folder)


@pytest.fixture(scope="module")
def fits(labels, tmp_path_factory):
    """The same rows fitted on P and on drawn answers: (table, {name: (facts, folder, fitted)})."""
    table = read_table(labels[0])
    found = {}
    with quick():
        for name, rows in (("P", table), ("answers", replace(table, probability=None))):
            folder = tmp_path_factory.mktemp(name)
            fitted = fit_table(rows.fit_rows, seed=0, progress=lambda fits: None)
            found[name] = write_router(folder, fitted, rows.fit_rows, ""), folder, fitted
    return table, found


def test_they_teach_more_than_single_answers(fits, labels):
    table, found = fits
    test = table.test_rows
    errors = {}
    for name, (_, folder, _) in found.items():
        probability, *_ = ask_graph(folder / "router.onnx", test, 0.0)
        errors[name] = np.square(probability - test.probability).mean()
    assert errors["P"] < 0.8 * errors["answers"]


def test_each_scale_is_calibrated_on_its_answers(fits):
    table, found = fits
    facts, folder, fitted = found["P"]
    assert len(facts["calibration"]["slope"]) == len(table.scales)
    assert facts["parity_max_difference"] <= PARITY
    onnx.checker.check_model(onnx.load(folder / "router.onnx"))
    fit = table.fit_rows
    # Calibrated: at each scale as many are said to be right as are.
    np.testing.assert_allclose(fitted.out_of_fold.mean(axis=0), fit.scores.mean(axis=0), atol=1e-3)
    assert isinstance(found["answers"][0]["calibration"]["slope"], float)


def test_the_ceiling_is_who_knows_p_judged_by_p(fits):
    table, found = fits
    facts, folder, _ = found["P"]
    with quick():
        e = evaluate(folder, facts, table, lambda steps: None)
    test = table.test_rows
    assert [budget for budget, _ in e.ceiling] == [at.budget for at in e.policy("router").at]
    lookup = np.array([test.probability[test.tasks == task].mean(axis=0) for task in test.tasks])
    for budget, ahead in e.ceiling:
        best = [_at(p, test, budget) for p in (test.probability, lookup)]
        assert ahead.value == pytest.approx(best[0] - best[1], abs=0.02)
        assert ahead.low <= ahead.value <= ahead.high
    assert e.ceiling[0][1].low > 0
    assert any(line.strip().startswith("knows P(right)") for line in lines(e))
    plain = json.loads(json.dumps(e.to_json(), allow_nan=False))
    assert plain["ceiling"][0]["budget"] == e.ceiling[0][0]


def _at(probability, test, budget):
    """Mean P of a policy at a mean cost, by a grid of prices and the line between the two beside the budget."""
    points = []
    for price in np.geomspace(1e-4, 10, 2000):
        choice = (probability - price * test.cost / test.cost[-1]).argmax(axis=1)
        points.append((test.cost[choice].mean(), test.probability[np.arange(len(test)), choice].mean()))
    return float(np.interp(budget, *np.array(sorted(set(points))).T))


def test_likelihood_of_the_reference_stands_for_scores(tmp_path, mvlm):
    folder = tmp_path / "labels"
    make_labels(folder, replace(RECIPE, rows=240, groups=48, scales=(1, 4)))
    without = mvlm("fit-router", folder, "--target", "likelihood", "--out", tmp_path / "router")
    assert without.exit_code == 2
    assert "no losses at all: they were labelled before losses were kept" in without.output
    alter(folder, labels=lambda rows: [row | {"loss": 1.0 / row["num_visual_tokens"]} for row in rows])
    table = read_table(folder, "likelihood")
    np.testing.assert_allclose(table.scores, np.tile(np.exp([-1.0, -0.25]), (240, 1)), rtol=1e-6)
    with quick():
        fitted = mvlm("fit-router", folder, "--target", "likelihood", "--out", tmp_path / "router")
        judged = mvlm("report", tmp_path / "router", "--out", tmp_path / "report")
    for done in (fitted, judged):
        assert done.exit_code == 0, done.output
        assert "likelihood of the reference answers' tokens" in done.output
