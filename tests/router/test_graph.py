"""router.onnx, written by hand, against LightGBM and numpy: every kind, every batch, and every threshold."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from scipy.special import expit

from router.estimators.averages import Constant, Neighbours, TaskLookup
from router.estimators.base import PlattScaling, ScaleEstimator
from router.estimators.candidates import Blend, OnBasis
from router.estimators.learned import PooledTrees, ScaleLogistic, ScaleNetwork
from router.estimators.novelty import Familiarity
from router.graph import trees as graph_trees
from router.graph.decision import router_graph
from router.graph.trees import floor_to_float32, split_value, tree_attributes
from router.graph.writer import OPSETS
from router.policy import choose

SCALES = (1, 4, 9, 36)
COST = np.float32(SCALES)
D_IMAGE, D_QUESTION = 3, 4
PARITY = 1e-5


@pytest.fixture(scope="module")
def rows():
    """Features (n, d), some on a coarse grid so that values come again and again, and scores (n, K)."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1000, D_IMAGE + D_QUESTION)).astype(np.float32)
    x[:, 2:5] = np.round(x[:, 2:5], 1)
    x[:, 6] = random.integers(0, 2, 1000)
    margins = x[:, :1] + np.sin(3 * x[:, 1:2]) * x[:, 6:] + np.log2(SCALES) * (1 + x[:, 2:3]) / 3
    return x, (random.random(margins.shape) < expit(margins)).astype(np.float32)


def fitted(name, rows) -> ScaleEstimator:
    kinds = {
        "logistic": ScaleLogistic(1.0),
        "constant": Constant(),
        "trees": PooledTrees(SCALES, num_trees=60, num_leaves=15),
        "one tree": PooledTrees(SCALES, num_trees=1, num_leaves=2),
        "monotone": PooledTrees(SCALES, num_trees=20, monotone=True),
        "network": ScaleNetwork(hidden=5),
        "neighbours": Neighbours(neighbours=20),
        "lookup": TaskLookup(),
        "on a basis": OnBasis(ScaleLogistic(1.0)),
        "on a basis without pairs": OnBasis(ScaleLogistic(1.0), most_pairs=0),
        "blend": OnBasis(
            Blend({"network": ScaleNetwork(hidden=5), "trees": PooledTrees(SCALES, num_trees=60, num_leaves=15)})
        ),
    }
    x, y = rows
    return kinds[name].fit(x, y, np.where(x[:, 6] > 0, "one", "other"))


KINDS = (
    "logistic", "constant", "trees", "one tree", "monotone", "network", "neighbours", "lookup", "on a basis",
    "on a basis without pairs", "blend",
)  # fmt: skip


def calibration(slope=1.3, intercept=-0.2):
    found = PlattScaling()
    found.slope_, found.intercept_ = slope, intercept
    return found


def model_of(estimator, calibrated=None):
    random = np.random.default_rng(1)
    usual = Familiarity().fit(random.standard_normal((300, 7)).astype(np.float32), np.arange(300).astype(str))
    known = {"scales": list(SCALES)}
    return router_graph(estimator, calibrated or calibration(), usual, known, d_image=D_IMAGE, d_question=D_QUESTION)


def session(estimator, calibrated=None):
    model = model_of(estimator, calibrated)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def ask(opened, x, price=0.0, cost=COST):
    feeds = {
        "image": x[:, :D_IMAGE], "question": x[:, D_IMAGE:],
        "price": np.asarray(price, np.float32), "cost": np.atleast_2d(np.asarray(cost, np.float32)),
    }  # fmt: skip
    return opened.run(["probability", "choice"], feeds)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 1000])
def test_the_graph_is_the_estimator(kind, batch, rows):
    estimator = fitted(kind, rows)
    x = rows[0][:batch]
    probability, choice = ask(session(estimator), x)
    assert probability.shape == (batch, 4)
    assert choice.shape == (batch,)
    assert choice.dtype == np.int64
    assert np.abs(probability - calibration().probability(estimator.margins(x))).max() < PARITY
    if kind != "constant" and batch > 1:
        assert np.ptp(probability) > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("price", [0.0, 0.07, 0.5, 3.0])
def test_the_choice_is_that_of_the_policy(kind, price, rows):
    opened = session(fitted(kind, rows))
    for cost in (COST, np.float32([3.1, 3.2, 7.7, 12.5])):
        probability, choice = ask(opened, rows[0], price, cost)
        np.testing.assert_array_equal(choice, choose(probability, cost, np.float32(price)))


def test_equal_probabilities_go_to_the_cheapest(rows):
    flat = Constant().fit(rows[0], np.full((1000, 4), 0.5))
    assert set(ask(session(flat), rows[0])[1]) == {0}


def tree_thresholds(estimator):
    """Every (feature, threshold) of the ensemble, as LightGBM has them: float64."""
    found, nodes = [], [tree["tree_structure"] for tree in estimator.booster_.dump_model()["tree_info"]]
    while nodes:
        node = nodes.pop()
        if "threshold" in node:
            found.append((node["split_feature"], node["threshold"]))
            nodes += [node["left_child"], node["right_child"]]
    return found


def rows_at_thresholds(estimator, x):
    """Rows with one feature on a threshold, as float32 has it, and one float to either side."""
    made = []
    for i, (feature, threshold) in enumerate(tree_thresholds(estimator)):
        if feature < x.shape[1]:  # the last feature is the scale
            nearest = np.float32(threshold)
            for value in (
                nearest,
                np.nextafter(nearest, np.float32(np.inf)),
                np.nextafter(nearest, np.float32(-np.inf)),
            ):
                made.append(x[i % len(x)].copy())
                made[-1][feature] = value
    return np.array(made)


def test_values_on_a_threshold_and_one_float_beside_it(rows):
    estimator = fitted("trees", rows)
    x = rows_at_thresholds(estimator, rows[0])
    assert len(x) > 1000
    probability, _ = ask(session(estimator), x)
    assert np.abs(probability - calibration().probability(estimator.margins(x))).max() < PARITY


def test_one_float_beside_a_threshold_behind_a_basis(rows):
    """Standardised columns and products are the same to the last bit, so that no tree goes another way."""
    estimator = fitted("blend", rows)
    trees, basis = estimator.head_.parts_["trees"], estimator.basis_
    made = []
    for feature, threshold in tree_thresholds(trees):
        if feature < len(basis.columns_):
            near = np.float32(threshold) / basis.per_std_[feature] + basis.mean_[feature]
            for step in range(-6, 7):  # some of these floats fall on either side
                made.append(rows[0][len(made) % 1000].copy())
                made[-1][basis.columns_[feature]] = near + step * np.spacing(near)
    assert len(made) > 1000
    x = np.array(made, np.float32)
    probability, _ = ask(session(estimator), x)
    assert np.abs(probability - calibration().probability(estimator.margins(x))).max() < PARITY


def test_thresholds_rounded_to_the_nearest_would_be_wrong(rows, monkeypatch):
    """That the test above can fail: with the usual rounding some value goes to the other side."""
    estimator = fitted("trees", rows)
    x = rows_at_thresholds(estimator, rows[0])
    monkeypatch.setattr(graph_trees, "floor_to_float32", np.float32)
    probability, _ = ask(session(estimator), x)
    assert np.abs(probability - calibration().probability(estimator.margins(x))).max() > 100 * PARITY


@pytest.mark.parametrize("threshold", [0.1, -0.1, 1 / 3, -1e-40, 1e-46, 0.0, 0.5, 16777217.0, -16777217.0])
def test_the_floor_is_the_largest_float32_not_above(threshold):
    floor = floor_to_float32(threshold)
    assert floor.dtype == np.float32
    assert float(floor) <= threshold < float(np.nextafter(floor, np.float32(np.inf)))


def test_values_beside_zero_are_zero_to_lightgbm(rows):
    estimator = fitted("trees", rows)
    below, above = np.float32(-1e-35), np.float32(1e-35)
    assert any(threshold == below for _, threshold in tree_thresholds(estimator))
    values = [below, above, np.float32(0), np.float32(-0.0)]
    values += [np.nextafter(v, np.float32(to)) for v in (below, above) for to in (-np.inf, np.inf)]
    x = np.repeat(rows[0][:50], len(values), axis=0)
    for feature in range(D_IMAGE + D_QUESTION):
        x[:, feature] = np.tile(values, 50)
        probability, _ = ask(session(estimator), x)
        assert np.abs(probability - calibration().probability(estimator.margins(x))).max() < PARITY


@pytest.mark.parametrize("threshold", [-1e-35, -1e-36, 0.0, 1e-36, 1e-35, 2.5, 0.1, -0.1])
def test_a_split_says_what_lightgbm_means(threshold):
    beside = [np.float32(threshold), np.float32(-1e-35), np.float32(1e-35), np.float32(0)]
    for x in [np.nextafter(b, np.float32(to)) for b in beside for to in (-np.inf, np.inf)] + beside:
        taken = 0.0 if abs(x) <= np.float32(1e-35) else float(x)
        assert (x <= split_value(threshold)) == (taken <= threshold), x


def walk(attributes, x):
    """The ensemble in plain Python, from the attributes of the ONNX node: (n, d) -> (n,)."""
    nodes = {}
    for i, key in enumerate(zip(attributes["nodes_treeids"], attributes["nodes_nodeids"], strict=True)):
        nodes[key] = {name.removeprefix("nodes_"): v[i] for name, v in attributes.items() if name.startswith("nodes_")}
    leaves = dict(
        zip(
            zip(attributes["target_treeids"], attributes["target_nodeids"], strict=True),
            attributes["target_weights"],
            strict=True,
        )
    )
    sums = np.zeros(len(x))
    for tree in sorted(set(attributes["nodes_treeids"])):
        for row, values in enumerate(x):
            node = nodes[tree, 0]
            while node["modes"] == "BRANCH_LEQ":
                left = values[node["featureids"]] <= np.float32(node["values"])
                node = nodes[tree, node["truenodeids"] if left else node["falsenodeids"]]
            sums[row] += leaves[tree, node["nodeids"]]
    return sums


def test_the_trees_walked_in_plain_python(rows):
    estimator = fitted("trees", rows)
    pooled = estimator._with_scale(rows[0][:40])
    margins = walk(tree_attributes(estimator), pooled).reshape(40, 4)
    np.testing.assert_allclose(margins, estimator.margins(rows[0][:40]), atol=1e-9)


def test_trees_that_found_nothing_to_split(rows):
    """A table without any pattern leaves trees of a single leaf."""
    x, y = np.zeros((1000, 7), np.float32), np.full((1000, 4), 0.25, np.float32)
    estimator = PooledTrees(SCALES, num_trees=3).fit(x, y)
    assert not tree_thresholds(estimator)
    probability, _ = ask(session(estimator, calibration(1.0, 0.0)), rows[0][:5])
    np.testing.assert_allclose(probability, 0.25, atol=PARITY)


def test_extreme_margins_stay_probabilities(rows):
    probability, _ = ask(session(fitted("logistic", rows), calibration(1e4, 0.0)), rows[0])
    assert np.isfinite(probability).all()
    assert probability.min() >= 0
    assert probability.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_file_says_of_itself(kind, rows):
    model = model_of(fitted(kind, rows))
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == list(OPSETS)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {
        "image": ["n", D_IMAGE], "question": ["n", D_QUESTION], "price": [], "cost": ["n_or_1", "k"],
        "num_visual_tokens": ["k"], "cap": [], "least_probability": [], "least_p_value": [], "unit_cost": [],
        "probability": ["n", "k"], "choice": ["n"], "p_value": ["n"],
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_fit_gives_the_same_bytes(kind, rows):
    one, other = (model_of(fitted(kind, rows)) for _ in range(2))
    assert one.SerializeToString() == other.SerializeToString()


def test_an_estimator_without_a_graph(rows):
    class Guess(ScaleEstimator):
        pass

    with pytest.raises(TypeError, match="no graph is written for Guess"):
        model_of(Guess())


def test_any_number_of_scales_between_those_of_the_fit(rows):
    """Linear in the log odds over log m, the fitted scales themselves unchanged, and never beyond the ends."""
    opened = session(fitted("logistic", rows))
    known, _ = ask(opened, rows[0])
    wanted = np.float32([1, 2, 4, 6, 9, 20, 36])
    feeds = {
        "image": rows[0][:, :D_IMAGE], "question": rows[0][:, D_IMAGE:], "price": np.asarray(0, np.float32),
        "cost": wanted[None], "num_visual_tokens": wanted,
    }  # fmt: skip
    probability, choice = opened.run(["probability", "choice"], feeds)
    slow = [
        expit(np.interp(np.log(wanted), np.log(SCALES), np.log(row / (1 - row)))) for row in known.astype(np.float64)
    ]
    np.testing.assert_allclose(probability, slow, atol=PARITY)
    np.testing.assert_allclose(probability[:, [0, 2, 4, 6]], known, atol=1e-6)
    assert choice.max() <= 6
    feeds |= {"num_visual_tokens": np.float32([0.5, 1000]), "cost": np.float32([[1, 2]])}
    np.testing.assert_allclose(opened.run(["probability"], feeds)[0], known[:, [0, -1]], atol=1e-6)


def decide(probability, p_value, price, cap, least_probability, least_p_value):
    """The decision in plain Python, for one row."""
    allowed = [k for k in range(4) if COST[k] <= cap]
    if p_value < least_p_value:
        return allowed[-1]
    good = [k for k in allowed if probability[k] >= least_probability]
    if not good:
        return max(allowed, key=lambda k: probability[k])
    return max(good, key=lambda k: probability[k] - np.float32(price) * (COST[k] / COST[-1]))


@pytest.mark.parametrize("price", [0.0, 0.2, 1e3])
@pytest.mark.parametrize("cap", [1.0, 9.0, np.inf])
@pytest.mark.parametrize("least_probability", [0.0, 0.6, 0.999])
@pytest.mark.parametrize("least_p_value", [0.0, 0.2])
def test_the_decision_against_plain_python(rows, price, cap, least_probability, least_p_value):
    terms = {
        "price": price, "cap": cap, "least_probability": least_probability, "least_p_value": least_p_value,
    }  # fmt: skip
    feeds = {"image": rows[0][:, :D_IMAGE], "question": rows[0][:, D_IMAGE:], "cost": COST[None]}
    feeds |= {name: np.asarray(value, np.float32) for name, value in terms.items()}
    probability, choice, p_value = session(fitted("logistic", rows)).run(None, feeds)
    slow = [decide(p, f, **terms) for p, f in zip(probability, p_value, strict=True)]
    assert choice.tolist() == slow


@pytest.mark.parametrize("kind", KINDS)
def test_small_enough_for_a_device(kind, rows):
    assert len(model_of(fitted(kind, rows)).SerializeToString()) <= 2**20
