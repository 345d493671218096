"""The choice of a scale: the graph's own against the runtime's, over all scales and over some."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.runtime import MvlmError
from export.runtime.backends.onnx import Device
from export.runtime.features import image_feature_names, question_feature_names
from export.runtime.manifest import RouterFacts
from export.runtime.routing.policy import interpolate
from export.runtime.routing.router import Router, Terms
from router.estimators.base import PlattScaling
from router.estimators.learned import ScaleLogistic
from router.estimators.novelty import Familiarity
from router.graph.decision import router_graph
from tests.support.bundles import PRICE, pool_bundle
from tests.support.tiny import SCALES

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
    """The same router with a graph that says these for the scales of the fit."""

    class Says:
        def run(self, names, feeds):
            scales = feeds["num_visual_tokens"].astype(int).tolist()
            probability = np.float32([probabilities[SCALES.index(m)] for m in scales])
            return [probability[None], np.float32([1.0])]

    router._graph = Says()
    return router


# A router that was written before rows had costs of their own, and what it chose.
SAVED = Path(__file__).parents[1] / "support" / "saved" / "router_3"
NOTHING = np.zeros(1, np.float32)


@pytest.mark.parametrize("price", [0.0, 0.05, 0.3, 2.0])
def test_the_choice_is_that_of_the_graph(file, features, price):
    image, question = features
    router, session = Router(file, FACTS, SCALES, Device()), onnxruntime.InferenceSession(file)
    costs = np.asarray(FACTS.costs, np.float32)
    feeds = {"image": image, "question": question, "price": np.asarray(price, np.float32), "cost": costs[None]}
    probability, choice = session.run(["probability", "choice"], feeds)
    for i in range(len(image)):
        chosen = router.choose(image[i], question[i], Terms(price=price))
        assert chosen.scale == SCALES[choice[i]]
        np.testing.assert_allclose(list(chosen.probabilities.values()), probability[i], rtol=1e-6)
    assert len(set(choice.tolist())) > 1 or price == 2.0


@pytest.mark.parametrize("device", [Device(), None])
def test_a_router_of_format_3_takes_costs_without_rows_and_chooses_as_it_did(device):
    router = Router(SAVED / "router.onnx", SMALL, SMALL.scales, device)
    for told in json.loads((SAVED / "choices.json").read_text()):
        image, question = (np.float32(told[name]) for name in ("image", "question"))
        chosen = router.choose(image, question, Terms(price=0.4))
        assert chosen.scale == told["scale"]
        np.testing.assert_allclose(list(chosen.probabilities.values()), told["probability"], atol=1e-5)


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


KNOWN = {
    "scales": [1, 4, 9, 36], "least_p_value": 0.05, "risk_bounds": [{"within": 0.02, "price": 0.3}],
    "validation_margin": None, "escalation": None,
}  # fmt: skip
SMALL = RouterFacts("router.onnx", (1, 4, 9, 36), (1.0, 4.0, 9.0, 36.0), "tokens", 0.1)


@pytest.fixture(scope="module")
def fitted():
    """A small logistic router: its features (n, d), estimator, and how to write it with other metadata."""
    random = np.random.default_rng(0)
    x = random.standard_normal((600, 6)).astype(np.float32)
    y = (random.random((600, 4)) < 1 / (1 + np.exp(-(x[:, :1] + np.array([-2, -1, 0.5, 1]))))).astype(np.float32)
    estimator, calibration = ScaleLogistic().fit(x, y), PlattScaling()
    calibration.slope_, calibration.intercept_ = 1.0, 0.0
    probability = calibration.probability(estimator.margins(x))
    usual = Familiarity().fit(x, np.arange(600).astype(str))
    return x, probability, (estimator, calibration, usual)


def written(folder, fitted, **known):
    _, probability, parts = fitted
    model = router_graph(*parts, KNOWN | {"validation": probability.tolist()} | known, d_image=2, d_question=4)
    onnx.save(model, folder / "router.onnx")
    return folder / "router.onnx"


NONE = [math.nan, math.inf, -1, 10**400, True, "x", "", {}, {"a": 1}, [[]], [None], [0.5], [-1, 4, 9, 36], None]


@pytest.mark.parametrize(
    "key", ["scales", "validation", "validation_strange", "priced", "risk_bounds", "escalation", "least_p_value",
            "default_loss"],
)  # fmt: skip
def test_what_no_fit_says_is_refused(tmp_path, fitted, key):
    """Whatever stands there: it is in order, and a budget has its price, or one line names the key."""
    said, file = [], written(tmp_path, fitted)
    model = onnx.load(file)
    told = json.loads(model.metadata_props[0].value)
    for value in NONE:
        model.metadata_props[0].value = json.dumps(told | {key: value})
        onnx.save(model, file)
        try:
            Router(file, SMALL, SMALL.scales, Device()).price(Terms(budget=9.0))
        except MvlmError as error:
            said.append(str(error))
    assert not [line for line in said if "\n" in line]
    assert sum(f"says of {key} what no fit does: fit the router again" in line for line in said) >= 8


def test_a_format_that_there_never_was(tmp_path, fitted):
    for version in (0, -3):
        with pytest.raises(MvlmError, match=f"is of format {version}, which there never was"):
            Router(written(tmp_path, fitted, format_version=version), SMALL, SMALL.scales, Device())


@pytest.mark.parametrize("device", [Device(), None], ids=["onnxruntime", "numpy"])
def test_a_graph_of_another_format_than_it_says(tmp_path, fitted, device):
    for version in (1, True):
        with pytest.raises(MvlmError, match="is not of the format 1 that it says: fit the router again"):
            Router(written(tmp_path, fitted, format_version=version), SMALL, SMALL.scales, device)


ON_CPU = Device()


def opened(folder, fitted, offered=(1, 4, 9, 36), device=ON_CPU, **known):
    return Router(written(folder, fitted, **known), SMALL, offered, device)


@pytest.mark.parametrize("device", [Device(), None], ids=["onnxruntime", "numpy"])
def test_terms_decide_as_they_say(tmp_path, fitted, device):
    """Price, cap and least probability against plain Python, with onnxruntime and without."""
    x, probability, _ = fitted
    router = opened(tmp_path, fitted, device=device, least_p_value=0.0)
    relative = np.array(SMALL.costs) / 36
    for i in range(40):
        p = probability[i]
        image, question = x[i, :2], x[i, 2:]
        choose = lambda **terms: router.choose(image, question, Terms(**terms))  # noqa: B023, E731
        assert choose(price=0.2).scale == SMALL.scales[int((p - 0.2 * relative).argmax())]
        assert choose().price == SMALL.default_price
        assert choose(price=0.0, cap=9).scale == SMALL.scales[int(p[:3].argmax())]
        enough = [k for k in range(4) if p[k] >= 0.5]
        # Alone it takes the cheapest that is likely enough, and the likeliest where none is.
        wanted = enough[0] if enough else int(p.argmax())
        assert choose(least_probability=0.5).scale == SMALL.scales[wanted]
        assert choose(price=0.0, least_probability=0.5).scale == SMALL.scales[int(p.argmax())]
        assert choose(within=0.02).price == 0.3
        np.testing.assert_allclose(list(choose().probabilities.values()), p, atol=1e-5)


@pytest.mark.parametrize("budget", [1.0, 3.0, 10.0, 30.0, 36.0])
def test_a_budget_is_a_mean_over_questions(tmp_path, fitted, budget):
    x, _, _ = fitted
    router = opened(tmp_path, fitted, least_p_value=0.0)
    spent = np.mean([router.choose(row[:2], row[2:], Terms(budget=budget)).cost for row in x])
    assert spent <= budget + 0.05
    cheaper = router.price(Terms(budget=budget)) * 0.98 - 1e-9
    if cheaper > 0:
        more = np.mean([router.choose(row[:2], row[2:], Terms(price=cheaper)).cost for row in x])
        assert more >= spent


def test_costs_are_replaced_by_milliseconds(tmp_path, fitted):
    x, probability, _ = fitted
    router = opened(tmp_path, fitted, least_p_value=0.0)
    flat = router.with_costs({1: 10.0, 4: 10.0, 9: 10.0, 36: 40.0}, "ms")
    relative = np.array([0.25, 0.25, 0.25, 1.0])
    for row, p in zip(x[:40], probability, strict=False):
        chosen = flat.choose(row[:2], row[2:], Terms(price=0.3))
        assert chosen.scale == SMALL.scales[int((p - 0.3 * relative).argmax())]
        assert chosen.cost in (10.0, 40.0)
    spent = np.mean([flat.choose(row[:2], row[2:], Terms(budget=20.0)).cost for row in x])
    assert 15 < spent <= 20.1
    with pytest.raises(MvlmError, match="a budget of 5 ms cannot be met: the scales cost 10 to 40"):
        flat.choose(x[0, :2], x[0, 2:], Terms(budget=5.0))
    with pytest.raises(MvlmError, match=r"the risk bound of 0\.02 is of other costs or scales"):
        flat.choose(x[0, :2], x[0, 2:], Terms(within=0.02))


def test_the_default_price_is_read_anew_at_other_costs(tmp_path, fitted):
    """By the loss that it was read by: at flat costs a step is dearer, and the same price would lose far more."""
    _, probability, _ = fitted
    router = opened(tmp_path, fitted, least_p_value=0.0, default_loss=0.02)
    costs = np.array([10.0, 10.5, 11.0, 12.0])
    replaced = router.with_costs(dict(zip(SMALL.scales, costs, strict=True)), "ms")
    assert replaced.costs_replaced
    assert not router.costs_replaced
    price = replaced.facts.default_price
    least = probability[:, -1].mean() - 0.02

    def right(price):
        choice = (probability - price * costs / 12).argmax(axis=1)
        return probability[np.arange(600), choice].mean()

    assert right(price) >= least - 1e-4
    assert right(price * 1.1) < least
    assert replaced.choose(np.zeros(2, np.float32), np.zeros(4, np.float32)).price == price
    # A router of before does not say by what its price was read, and keeps it.
    (tmp_path / "old").mkdir()
    old = opened(tmp_path / "old", fitted).with_costs(dict(zip(SMALL.scales, costs, strict=True)), "ms")
    assert old.facts.default_price == SMALL.default_price


@pytest.mark.parametrize(
    ("costs", "says"),
    [
        ({1: 1.0, 4: 2.0, 9: 3.0}, "no cost is given for 36 tokens"),
        ({1: 1.0, 4: 3.0, 9: 2.0, 36: 4.0}, "do not fall as the scale rises"),
        ({1: 0.0, 4: 1.0, 9: 2.0, 36: 4.0}, "give numbers above 0"),
        ({1: 1.0, 4: 1.0, 9: 2.0, 36: float("inf")}, "give numbers above 0"),
    ],
)
def test_costs_that_are_none(tmp_path, fitted, costs, says):
    with pytest.raises(MvlmError, match=says):
        opened(tmp_path, fitted).with_costs(costs, "ms")


def test_scales_between_those_of_the_fit(tmp_path, fitted):
    x, probability, _ = fitted
    router = opened(tmp_path, fitted, offered=(1, 6, 20, 36))
    assert router.costs.tolist() == [1, 6, 20, 36]
    said = router.probabilities(x[0, :2], x[0, 2:])
    np.testing.assert_allclose(said, interpolate(probability[:1], SMALL.scales, (1, 6, 20, 36))[0], atol=1e-5)
    odds = np.log(probability[0] / (1 - probability[0]))
    slow = np.interp(np.log([6, 20]), np.log(SMALL.scales), odds)
    np.testing.assert_allclose(said[1:3], 1 / (1 + np.exp(-slow)), atol=1e-5)
    for outside in ((0, 1), (36, 144), ()):
        with pytest.raises(MvlmError, match="the router was fitted for 1 to 36 tokens"):
            opened(tmp_path, fitted, offered=outside)


def test_what_is_unfamiliar_takes_the_finest_that_the_cap_allows(tmp_path, fitted):
    x, _, _ = fitted
    router = opened(tmp_path, fitted)
    strange = np.full(4, 30.0, np.float32)
    chosen = router.choose(x[0, :2], strange, Terms(price=5.0))
    assert (chosen.scale, chosen.out_of_distribution) == (36, True)
    assert chosen.p_value < 0.05
    assert chosen.reason.startswith("36 tokens: the finest allowed, since this question and picture are unlike")
    assert router.choose(x[0, :2], strange, Terms(price=5.0, cap=10.0)).scale == 9
    ordinary = [router.choose(row[:2], row[2:], Terms(price=5.0)).out_of_distribution for row in x]
    assert np.mean(ordinary) <= 0.06


RULE = {"now": [0.0, 1.0, 0.0, 0.0], "finer": [3.0, 0.0, 0.0, 0.0]}  # unsure first tokens: the finer is surely right


def test_an_escalation_after_an_unsure_answer(tmp_path, fitted):
    x, _, _ = fitted
    router = opened(tmp_path, fitted, escalation=RULE, validation_margin=[[0.5] * 4] * 600, least_p_value=0.0)
    assert router.looks_again
    first = router.choose(x[0, :2], x[0, 2:], Terms(price=0.2, cap=40.0))
    first = replace(first, scale=4)
    assert router.escalate(first, 0.99) is None
    second = router.escalate(first, 0.1)
    assert second.scale > 4
    assert second.cost == 4 + second.scale
    assert second.reason.endswith("looked again, since the first token led by only 0.10 at 4")
    assert router.escalate(first, 0.1, keeps_cache=True).cost == router.escalate(first, 0.1).scale
    assert router.escalate(replace(first, terms=Terms(cap=12.0)), 0.1) is None
    assert router.escalate(replace(first, scale=36), 0.1) is None
    assert router.escalate(replace(first, out_of_distribution=True), 0.1) is None
    # A budget counts escalations, so that its price is higher.
    (tmp_path / "plain").mkdir()
    plain = opened(tmp_path / "plain", fitted, least_p_value=0.0)
    assert plain.escalate(first, 0.1) is None
    assert router.price(Terms(budget=10.0)) > plain.price(Terms(budget=10.0))


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"budget": 0.5}, "a budget of 0.5 tokens cannot be met: the scales cost 1 to 36"),
        ({"budget": 37.0}, "a budget of 37 tokens cannot be met"),
        ({"cap": 0.5}, "a cap of 0.5 tokens allows no scale: the cheapest costs 1"),
        ({"within": 0.01}, r"bounds no loss within 0.01 \(it has: 0.02\): fit with --within"),
    ],
)
def test_terms_that_cannot_be_met(tmp_path, fitted, terms, says):
    with pytest.raises(MvlmError, match=says):
        opened(tmp_path, fitted).choose(NOTHING, NOTHING, Terms(**terms))


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"price": 0.1, "budget": 9.0}, "price and budget cannot both be named"),
        ({"budget": 9.0, "within": 0.01}, "budget and within cannot both be named"),
        ({"cap": -1.0}, "the cap is -1.0: give a number from 0 up"),
        ({"least_probability": 1.5}, "the least probability is 1.5: give one from 0 to 1"),
        ({"within": 2.0}, "the within is 2.0: give one from 0 to 1"),
    ],
)
def test_terms_that_are_none(terms, says):
    with pytest.raises(MvlmError, match=says):
        Terms(**terms)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", [0, 1])
def test_features_that_are_no_numbers_are_refused_before_the_graph(tmp_path, fitted, bad, part):
    x, _, _ = fitted
    features = [x[0, :2].copy(), x[0, 2:].copy()]
    features[part][1] = bad
    with pytest.raises(MvlmError, match=f"the {('image', 'question')[part]} features hold {bad}"):
        opened(tmp_path, fitted).choose(*features)


def test_files_of_a_newer_version_or_of_another_kind(tmp_path, fitted):
    file = written(tmp_path, fitted)
    model = onnx.load(file)
    known = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps(known | {"format_version": 99})
    onnx.save(model, file)
    for device in (Device(), None):
        with pytest.raises(MvlmError, match="is of format 99, and this mvlm reads up to 4: upgrade mvlm"):
            Router(file, SMALL, (1, 4), device)
    del model.metadata_props[:]
    onnx.save(model, file)
    with pytest.raises(MvlmError, match="does not say what it was fitted for"):
        Router(file, SMALL, (1, 4), Device())
