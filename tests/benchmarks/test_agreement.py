"""A router fitted on agreement beside one fitted on right answers, on labels whose truth is known."""

import pytest

from benchmarks.router.agreement import compared
from tests.support.labels_maker import Recipe, make_labels, quick


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels") / "labels"
    make_labels(folder, Recipe(rows=800, groups=80))
    with quick():
        return compared(folder)


def test_both_are_judged_by_right_answers_at_the_same_budgets(figures):
    assert figures["budgets"] == [4.0, 9.0, 18.0]
    assert (figures["rows"], figures["pictures"]) == (400, 40)
    assert set(figures["gains"]) == {"right answers", "agreement"}
    for ours, theirs, behind in zip(*figures["gains"].values(), figures["agreement_minus_right"], strict=True):
        assert theirs["value"] - ours["value"] == pytest.approx(behind["value"], abs=0.002)
        assert behind["low"] <= behind["value"] <= behind["high"]
