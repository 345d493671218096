"""A budget through a bundle: what its own choices spend on the questions that it is asked, and what is out of
distribution among them."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from PIL import Image

from export.runtime import Runtime
from export.runtime.backends.onnx import Device
from export.runtime.manifest import RouterFacts
from export.runtime.routing.policy import Policy, Seen, is_strange
from export.runtime.routing.router import Router
from router.estimators.base import PlattScaling
from router.estimators.learned import ScaleLogistic
from router.estimators.novelty import Familiarity
from router.graph.decision import router_graph
from tests.support.bundles import pool_bundle
from tests.support.tiny import QUESTIONS, SCALES

COST = np.array(SCALES, float)
LEAST_P_VALUE = 0.1


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A bundle with a router of the very questions that it is asked, one picture in ten being noise:
    (runtime, [(view, question)], what is decided by)."""
    runtime = Runtime.load(pool_bundle().bundle, threads=1)
    random = np.random.default_rng(0)
    views = []
    for i in range(30):
        colour = random.integers(0, 256, 3)
        plain = np.broadcast_to(colour, (96, 96, 3)) + random.integers(-10, 10, (96, 96, 1))
        pixels = random.integers(0, 256, (96, 96, 3)) if i % 10 == 9 else plain.clip(0, 255)
        views.append(runtime.look(Image.fromarray(pixels.astype(np.uint8))))
    rows = list(product(views, QUESTIONS))
    image = np.stack([view.image_features for view, _ in rows])
    question = np.stack([runtime._of_question(view, text) for view, text in rows])
    x = np.column_stack([image, question]).astype(np.float32)
    usual = np.arange(len(rows)) // len(QUESTIONS) % 10 != 9
    estimator, calibration = ScaleLogistic(l2=0.1), PlattScaling()
    estimator.fit(x, np.sort(random.random((len(rows), len(SCALES))), axis=1))
    calibration.slope_, calibration.intercept_ = 1.0, 0.0
    novelty = Familiarity(image.shape[1]).fit(x[usual], np.arange(usual.sum()).astype(str))
    strange = is_strange(novelty.p_value(x), LEAST_P_VALUE)
    probability = calibration.probability(estimator.margins(x))
    known = {
        "scales": list(SCALES), "least_p_value": LEAST_P_VALUE, "validation": probability.tolist(),
        "validation_strange": np.flatnonzero(strange).tolist(), "risk_bounds": [], "escalation": None,
    }  # fmt: skip
    file = tmp_path_factory.mktemp("router") / "router.onnx"
    widths = {"d_image": image.shape[1], "d_question": question.shape[1]}
    onnx.save(router_graph(estimator, calibration, novelty, known, **widths), file)
    facts = RouterFacts("router.onnx", SCALES, tuple(COST.tolist()), "tokens", 0.1)
    runtime.router = Router(file, facts, SCALES, Device())
    return runtime, rows, Seen(probability, strange)


@pytest.mark.parametrize("budget", [20.0, 40.0, 80.0])
def test_what_is_asked_is_what_is_spent(asked, budget):
    _, rows, seen = asked
    policy = Policy(COST, COST[-1])
    chosen = [view.choose(question, budget=budget) for view, question in rows]
    spent = np.array([choice.cost for choice in chosen])
    # The row at the edge of the price falls to either side, as single precision has it.
    one_row = COST[-1] / len(rows)
    assert spent.mean() == pytest.approx(policy.mean_cost(seen, policy.price_for(seen, budget)), abs=one_row)
    assert spent.mean() == pytest.approx(budget, abs=0.03 * budget + one_row)


def test_noise_takes_the_finest_scale_and_is_paid_for(asked):
    _, rows, seen = asked
    assert 0.02 < seen.strange.mean() < 0.3
    for (view, question), strange in zip(rows, seen.strange, strict=True):
        choice = view.choose(question, price=5.0)
        assert choice.out_of_distribution == strange
        assert (choice.scale == SCALES[-1]) == strange
    # Without the override the same price spends far less.
    blind = Seen(seen.probability, np.zeros(len(rows), bool))
    policy = Policy(COST, COST[-1])
    assert policy.mean_cost(seen, 5.0) > 2 * policy.mean_cost(blind, 5.0)
