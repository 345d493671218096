"""The learning curve: parts of the labels, judged alike, and what follows of them."""

from __future__ import annotations

import html
from dataclasses import replace

import numpy as np
import pytest

from router.estimators.base import PlattScaling
from router.estimators.learned import ScaleLogistic
from router.fit.fit import features
from router.labels import read_table
from router.metrics import Interval
from router.report import summary
from router.report.budgets import Contender
from router.report.evaluate import evaluate, router_of_labels, steps
from router.report.learning import PARTS, Learned, enough, in_words, learning_curve
from router.report.report import write_report
from tests.support.labels_maker import PICTURE_DECIDES, make_labels, quick


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning") / "labels"
    make_labels(folder, replace(PICTURE_DECIDES, rows=1600, groups=160))
    return read_table(folder)


class Recorder(ScaleLogistic):
    """Keeps the rows of each fit, and those that it was asked about."""

    met: list[tuple[int, list[int]]] = []  # noqa: RUF012

    def fit(self, x, y, tasks=None):
        self.met.append((len(x), []))
        return super().fit(x, y, tasks)

    def margins(self, x):
        self.met[-1][1].append(len(x))
        return super().margins(x)


def test_parts_are_nested_and_calibrated_on_the_rest(table):
    fit, test = table.fit_rows, table.test_rows
    same = np.tile(fit.scores.mean(axis=0), (len(test), 1))
    lookup = Contender.plain("lookup by task", same, same, test.cost)
    told = []
    Recorder.met.clear()
    curve = learning_curve(Recorder(l2=1.0), fit, test, lookup, [4.0, 16.0], told.append)
    assert sum(told) == len(PARTS) == len(curve)
    assert [one.pictures for one in curve] == [10, 20, 40]
    for one, (rows, asked) in zip(curve, Recorder.met, strict=True):
        assert rows == 10 * one.pictures
        assert asked == [len(fit) - rows, len(test)]


def test_the_last_part_as_one_would_by_hand(table):
    """Half of the pictures, fitted, calibrated on the other half, at exactly a budget over no lookup at all."""
    fit, test = table.fit_rows, table.test_rows
    same = np.tile(fit.scores.mean(axis=0), (len(test), 1))
    lookup = Contender.plain("lookup by task", same, same, test.cost)
    curve = learning_curve(ScaleLogistic(1.0), fit, test, lookup, [9.0], lambda steps: None)
    order = np.random.default_rng(0).permutation(np.unique(fit.groups))
    own = np.isin(fit.groups, order[:40])
    x = features(fit)
    fitted = ScaleLogistic(1.0).fit(x[own], fit.scores[own])
    calibration = PlattScaling().fit(fitted.margins(x[~own]), fit.scores[~own])
    said = calibration.probability(fitted.margins(features(test)))

    def at_nine(p) -> float:
        prices = np.linspace(0, 5, 4001)
        points = []
        for price in prices:
            k = (p - price * test.cost / test.cost.max()).argmax(axis=1)
            points.append((test.cost[k].mean(), test.scores[np.arange(len(k)), k].mean()))
        costs, scores = map(np.array, zip(*sorted(points), strict=True))
        return float(np.interp(9.0, costs, scores))

    assert curve[-1].ahead.value == pytest.approx(at_nine(said) - at_nine(same), abs=0.01)


def test_how_many_are_enough():
    def curve(*points):
        return [Learned(n, Interval(v, v, v)) for n, v in points]

    law = curve(*((n, 0.03 - 0.15 * n**-0.5) for n in (100, 200, 400, 800)))
    n = enough(law)
    brought = 0.15 * (n**-0.5 - (2 * n) ** -0.5)
    assert brought == pytest.approx(0.001, rel=0.05)
    assert f"label about {n:,} pictures: there are 800, and each doubling still pays" in in_words(law)
    steep = curve(*((n, 0.1 - 1.2 * n**-0.5) for n in (100, 200, 400, 800)))
    assert enough(steep) > 4 * 800
    assert "label 3,200 pictures or more: there are 800" in in_words(steep)[1]
    there = curve(*((n, 0.03 - 0.02 * n**-0.5) for n in (100, 200, 400)))
    assert "and more of them would bring little" in in_words(there)[1]
    assert enough(curve((100, 0.01), (200, 0.0))) is None
    assert "label no more" in in_words(curve((100, 0.01), (200, 0.0)))[1]
    assert in_words([]) == []


def test_the_report_shows_it_where_it_was_asked_for(made, tmp_path):
    folder, table, e = made("question")
    assert e.learning == []
    facts, told = router_of_labels(folder / "router", table, folder / "labels"), []
    with quick():
        asked = evaluate(folder / "router", facts, table, told.append, curve=True)
    assert sum(told) == steps(True, table) == steps(False, table) + len(PARTS)
    assert asked.learning[-1] == Learned(120, asked.policy("router").mean_ahead)
    assert asked.to_json()["learning"][0]["pictures"] == 15
    (curve, many) = in_words(asked.learning)
    assert many.startswith("label ") or "label no more" in many
    assert [line for line in summary.lines(asked) if line in (curve, many)] == [curve, many]
    (tmp_path / "report").mkdir()
    write_report(tmp_path / "report", asked, table, {}, ({}, ""))
    page = html.unescape((tmp_path / "report" / "index.html").read_text())
    assert curve in page
    assert many in page
    assert any("mvlm report --learning-curve" in line for line in summary.lines(e))
