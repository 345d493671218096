"""The choice of a scale: the graph's own against the runtime's, over all scales and over some."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from bundles import PRICE, pool_bundle
from tiny import SCALES

from export.runtime import MvlmError
from export.runtime.features import image_feature_names, question_feature_names
from export.runtime.manifest import RouterFacts
from export.runtime.router import Router, Terms
from export.runtime.sessions import Device

FACTS = RouterFacts("router.onnx", SCALES, tuple(map(float, SCALES)), "tokens", PRICE)


@pytest.fixture(scope="module")
def file():
    return pool_bundle().router / "router.onnx"


@pytest.fixture(scope="module")
def features():
    generator = np.random.default_rng(1)
    widths = len(image_feature_names()), len(question_feature_names())
    return [generator.standard_normal((40, d)).astype(np.float32) for d in widths]


def with_probabilities(router: Router, *probabilities: float) -> Router:
    """The same router with a graph that says these for the scales of the fit, and decides as the design has it."""

    class Says:
        def run(self, names, feeds):
            scales = feeds["num_visual_tokens"].astype(int).tolist()
            probability = np.float32([probabilities[SCALES.index(m)] for m in scales])
            worth = probability - feeds["price"] * feeds["cost"] / feeds["cost"].max()
            return [probability[None], worth.argmax(keepdims=True), np.float32([1.0])]

    router._graph = Says()
    return router


NOTHING = np.zeros(1, np.float32)


@pytest.mark.parametrize("price", [0.0, 0.05, 0.3, 2.0])
def test_the_choice_is_that_of_the_graph(file, features, price):
    image, question = features
    router, session = Router(file, FACTS, SCALES, Device()), onnxruntime.InferenceSession(file)
    costs = np.asarray(FACTS.costs, np.float32)
    feeds = {"image": image, "question": question, "price": np.asarray(price, np.float32), "cost": costs}
    probability, choice = session.run(["probability", "choice"], feeds)
    for i in range(len(image)):
        chosen = router.choose(image[i], question[i], Terms(price=price))
        assert chosen.scale == SCALES[choice[i]]
        np.testing.assert_allclose(list(chosen.probabilities.values()), probability[i], rtol=1e-6)
    assert len(set(choice.tolist())) > 1 or price == 2.0


def test_a_bundle_with_fewer_scales_chooses_the_best_of_those_at_the_same_price(file):
    whole = with_probabilities(Router(file, FACTS, SCALES, Device()), 0.1, 0.2, 0.5, 0.6, 0.9)
    part = with_probabilities(Router(file, FACTS, (9, 36), Device()), 0.1, 0.2, 0.5, 0.6, 0.9)
    assert whole.choose(NOTHING, NOTHING, Terms(price=0.1)).scale == 144
    # 0.1 more for 27 / 144 of the dearest scale of the router: taken below a price of 0.53, not above it.
    assert part.choose(NOTHING, NOTHING, Terms(price=0.5)).scale == 36
    assert part.choose(NOTHING, NOTHING, Terms(price=0.56)).scale == 9
    assert set(part.choose(NOTHING, NOTHING).probabilities) == {9, 36}


def test_reasons_are_for_people(file):
    router = with_probabilities(Router(file, FACTS, SCALES, Device()), 0.1, 0.2, 0.3, 0.93, 0.95)
    assert router.choose(NOTHING, NOTHING, Terms(price=0.1)).reason == (
        "36 tokens: P(right) 0.93 against 0.95 at 144, which costs 4 times as much"
    )
    assert router.choose(NOTHING, NOTHING, Terms(price=0)).reason == (
        "144 tokens: P(right) 0.95 against 0.93 at 36, which costs 4 times less"
    )
    alone = with_probabilities(Router(file, FACTS, (1,), Device()), 0.1, 0.2, 0.3, 0.93, 0.95)
    assert alone.choose(NOTHING, NOTHING).reason == "1 token: P(right) 0.10, and the bundle holds no other scale"
    equal = RouterFacts("router.onnx", SCALES, (1.0,) * 5, "ms", PRICE)
    router = with_probabilities(Router(file, equal, (9, 36), Device()), 0.1, 0.2, 0.3, 0.93, 0.95)
    assert router.choose(NOTHING, NOTHING).reason == "36 tokens: P(right) 0.93 against 0.30 at 9, which costs as much"


@pytest.mark.parametrize("price", [-1e-9, float("nan"), float("inf")])
def test_prices_that_are_none(price):
    with pytest.raises(MvlmError, match="give a number from 0 up"):
        Terms(price=price)
