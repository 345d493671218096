"""What a router is compared with: what each baseline may see, and what it was fitted like."""

from __future__ import annotations

import numpy as np
import pytest

from router.estimators.learned import PooledTrees, ScaleLogistic
from router.report import baselines as baselines_module
from router.report.baselines import baselines, count
from router.report.evaluate import _estimator

pytestmark = pytest.mark.usefixtures("quickly")


class Seen(ScaleLogistic):
    """Keeps the features that it was fitted on."""

    fitted: list[np.ndarray] = []  # noqa: RUF012

    def fit(self, x, y, tasks=None):
        self.fitted.append(x)
        return super().fit(x, y)


def test_what_each_baseline_may_see(made, monkeypatch):
    monkeypatch.setattr(baselines_module, "workers", lambda: 1)  # so that fits come in their order
    _, table, _ = made("question")
    Seen.fitted.clear()
    told = []
    found = list(baselines(Seen(), table.fit_rows, table.test_rows, told.append))
    assert [b.name for b in found] == [
        "lookup by task",
        "question only",
        "image only",
        "shuffled labels",
        "nearest neighbours",
    ]
    assert sum(told) == count(table) == len(found)
    question, image, shuffled = (Seen.fitted[i] for i in (2, 5, 8))  # the fits on all rows, after those of the folds
    # Three of the picture, then: tokens, two of the match, and the words.
    assert not question[:, :3].any()
    assert not question[:, 4:6].any()
    assert question[:, 3].all()
    assert question[:, 6:8].any()
    assert not image[:, 3:].any()
    assert image[:, :3].any()
    np.testing.assert_array_equal(shuffled[:, :3], table.fit_rows.image)
    for baseline in found:
        assert baseline.fit.shape == (1200, 4)
        assert baseline.test.shape == (1200, 4)


def test_the_lookup_shrinks_rare_kinds_and_knows_no_others():
    rows = 100
    scores = np.zeros((rows, 2), np.float32)
    scores[:50] = 1
    scores[99] = 1
    tasks = np.array(["often"] * 99 + ["rare"])

    class Some:
        def __init__(self, scores, tasks):
            self.scores, self.tasks = scores, tasks

    on_fit, on_test = baselines_module._lookup(Some(scores, tasks), Some(scores[:2], np.array(["rare", "new"])))
    overall = scores.mean()
    assert on_fit[0, 0] == pytest.approx((50 + 20 * overall) / 119)
    assert on_test[0, 0] == pytest.approx((1 + 20 * overall) / 21)
    assert on_test[1, 0] == pytest.approx(overall)


def test_the_baselines_have_the_estimator_and_the_seed_of_the_fit(made):
    _, table, _ = made("noise")
    assert isinstance(_estimator({"estimator": "logistic", "seed": 7, "constant": False}, table), ScaleLogistic)
    # Where the constant router ships, its rivals are not constant as well.
    learner = _estimator({"estimator": "constant", "seed": 7, "constant": True}, table)
    assert isinstance(learner, PooledTrees)
    assert learner.seed == 7
