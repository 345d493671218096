"""A fitted router as router.onnx, written by hand with `onnx.helper`.

Letters: n rows, K scales, d features. Converters are not used: with calibrated trees they convert silently wrong
(reference/router.md, section 5). Thresholds are floored to float32, since a float64 threshold rounded up would send a
value that lies exactly on it to the other side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.runtime.router import METADATA_KEY, ROUTER_FORMAT

from .basis import LIMIT
from .estimators import (
    LEAST_PROBABILITY,
    NEIGHBOUR_FLOOR,
    Blend,
    Constant,
    Neighbours,
    OnBasis,
    PlattScaling,
    PooledTrees,
    ScaleEstimator,
    ScaleLogistic,
    ScaleNetwork,
    TaskLookup,
)
from .familiar import Familiarity

Floats = NDArray[np.floating]
OPSETS = (("", 17), ("ai.onnx.ml", 3))
_IR_VERSION = 8
# LightGBM's kZeroThreshold (include/LightGBM/meta.h).
_ZERO = np.float32(1e-35)


def router_graph(
    estimator: ScaleEstimator,
    calibration: PlattScaling,
    familiarity: Familiarity,
    known: dict[str, Any],
    *,
    d_image: int,
    d_question: int,
) -> onnx.ModelProto:
    """The whole decision as one graph. `known` is what the runtime must know of the router besides; it has `scales`.

    Inputs, all float32: `image` (n, d_image), `question` (n, d_question), `price` (), `cost` (k,). Further inputs have
    a default, which leaves the choice at argmax(probability - price * cost / max(cost)), ties to the cheaper:
    `num_visual_tokens` (k,) the scales on offer, if not those of the fit; `cap` (); `least_probability` ();
    `least_familiarity` (). Outputs: `probability` (n, k), `choice` (n,) an index into the scales, `familiarity` (n,).
    """
    scales = np.asarray(known["scales"], np.float32)
    graph = _Graph(len(scales))
    graph.add("Concat", ["image", "question"], "features", axis=1)  # (n, d)
    margins = _margins(graph, estimator, "features")
    graph.add("Mul", [margins, graph.constant("slope", np.float32(calibration.slope_))], "scaled")
    graph.add("Add", ["scaled", graph.constant("intercept", np.float32(calibration.intercept_))], "calibrated")
    _any_scale(graph, scales)
    _familiarity(graph, familiarity)
    _decision(graph)
    return graph.model(d_image, d_question, known)


def _any_scale(graph: _Graph, scales: Floats) -> None:
    """Log odds at the fitted scales (n, K) -> probabilities at those on offer (n, k), linear over log m in between."""
    at = np.log(scales.astype(np.float64))
    # The share of each gap that lies below m; before the first scale all of it, behind the last nothing.
    starts = np.concatenate([[at[0] - 2], at[:-1], [at[-1] + 1e9]])
    per_log = np.concatenate([[1e6], 1 / np.diff(at), [1]])
    graph.default("num_visual_tokens", scales)
    graph.add("Log", ["num_visual_tokens"], "log_m")
    graph.add("Sub", ["log_m", graph.constant("gap_starts", starts.astype(np.float32)[:, None])], "above")  # (K + 1, k)
    graph.add("Mul", ["above", graph.constant("per_log", per_log.astype(np.float32)[:, None])], "parts")
    zero, one = (graph.constant(name, np.float32(value)) for name, value in (("zero", 0), ("unity", 1)))
    graph.add("Clip", ["parts", zero, one], "passed")
    lower, upper = (
        graph.constant(name, np.arange(len(scales)) + i) for i, name in enumerate(("lower_gaps", "upper_gaps"))
    )
    graph.add("Gather", ["passed", lower], "into", axis=0)  # (K, k)
    graph.add("Gather", ["passed", upper], "beyond", axis=0)
    graph.add("Sub", ["into", "beyond"], "weight_of_scale")
    graph.add("MatMul", ["calibrated", "weight_of_scale"], "log_odds")  # (n, k)
    graph.add("Sigmoid", ["log_odds"], "probability")


def _familiarity(graph: _Graph, familiarity: Familiarity) -> None:
    """The conformal p-value: the rank of the squared distance among those of the calibration rows, (n,)."""
    mean, directions = familiarity.mean_.astype(np.float32), familiarity.directions_.astype(np.float32)
    graph.add("Sub", ["features", graph.constant("usual", mean)], "unusual")  # (n, d)
    graph.add("MatMul", ["unusual", graph.constant("directions", directions)], "off")  # (n, p)
    graph.add("Mul", ["off", "off"], "off_squared")
    last = graph.constant("last_axis", np.array([1]))
    graph.add("ReduceSum", ["off_squared", last], "distance", keepdims=1)  # (n, 1)
    calibration = familiarity.calibration_.astype(np.float32)
    graph.add("LessOrEqual", ["distance", graph.constant("distances", calibration)], "stranger")  # (n, c)
    graph.add("Cast", ["stranger"], "stranger_count", to=TensorProto.FLOAT)
    graph.add("ReduceSum", ["stranger_count", last], "strangers", keepdims=0)  # (n,)
    graph.add("Add", ["strangers", "unity"], "rank")
    graph.add("Div", ["rank", graph.constant("ranks", np.float32(len(calibration) + 1))], "familiarity")


def _decision(graph: _Graph) -> None:
    """The best utility among what the cap allows and is likely enough; the likeliest where nothing is; the finest
    allowed for what is unfamiliar."""
    graph.default("cap", np.float32(np.inf))
    graph.default("least_probability", np.float32(0))
    graph.default("least_familiarity", np.float32(0))
    never = graph.constant("never", np.float32(-1e30))
    graph.add("ReduceMax", ["cost"], "dearest", keepdims=0)
    graph.add("Div", ["cost", "dearest"], "relative_cost")  # (k,)
    graph.add("Mul", ["price", "relative_cost"], "priced")
    graph.add("Sub", ["probability", "priced"], "utility")  # (n, k)
    graph.add("LessOrEqual", ["cost", "cap"], "allowed")  # (k,)
    graph.add("GreaterOrEqual", ["probability", "least_probability"], "likely")  # (n, k)
    graph.add("And", ["likely", "allowed"], "good")
    graph.add("Where", ["good", "utility", never], "good_utility")
    graph.add("Where", ["allowed", "probability", never], "allowed_probability")
    graph.add("ReduceMax", ["good_utility"], "best_utility", axes=[1], keepdims=1)  # (n, 1)
    graph.add("GreaterOrEqual", ["best_utility", graph.constant("half_never", np.float32(-1e29))], "some_good")
    graph.add("Where", ["some_good", "good_utility", "allowed_probability"], "merit")
    graph.add("Where", ["allowed", "num_visual_tokens", never], "fineness")  # (k,)
    graph.add("Unsqueeze", ["familiarity", "last_axis"], "familiarity_column")  # (n, 1)
    graph.add("Less", ["familiarity_column", "least_familiarity"], "strange")
    graph.add("Where", ["strange", "fineness", "merit"], "final")  # (n, k)
    # Scales ascend and the first of equals is taken, so ties go to the cheaper.
    graph.add("ArgMax", ["final"], "choice", axis=1, keepdims=0)  # (n,)


@dataclass
class _Graph:
    num_scales: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    defaults: list[onnx.ValueInfoProto] = field(default_factory=list)

    def add(self, op: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def single(self, name: str, value: Floats) -> str:
        """A constant in single precision."""
        return self.constant(name, np.asarray(value).astype(np.float32))

    def default(self, name: str, value: NDArray[Any] | np.generic) -> None:
        """An input that need not be given. A vector stands for any number of scales."""
        self.constant(name, value)
        shape = ["k"] if np.ndim(value) else []
        self.defaults.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def model(self, d_image: int, d_question: int, known: dict[str, Any]) -> onnx.ModelProto:
        floats, info = TensorProto.FLOAT, helper.make_tensor_value_info
        inputs = [
            info("image", floats, ["n", d_image]), info("question", floats, ["n", d_question]),
            info("price", floats, []), info("cost", floats, ["k"]), *self.defaults,
        ]  # fmt: skip
        outputs = [
            info("probability", floats, ["n", "k"]), info("choice", TensorProto.INT64, ["n"]),
            info("familiarity", floats, ["n"]),
        ]  # fmt: skip
        graph = helper.make_graph(self.nodes, "router", inputs, outputs, self.constants)
        opsets = [helper.make_opsetid(*opset) for opset in OPSETS]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="mvlm")
        helper.set_model_props(model, {METADATA_KEY: json.dumps({"format_version": ROUTER_FORMAT} | known)})
        onnx.checker.check_model(model, full_check=True)
        return model


def _margins(graph: _Graph, estimator: ScaleEstimator, x: str) -> str:
    """The margins (n, K) of what stands under the name `x`."""
    for kind, write in _MARGINS.items():
        if isinstance(estimator, kind):
            return write(graph, estimator, x)
    raise TypeError(f"no graph is written for {type(estimator).__name__}")


def _on_basis(graph: _Graph, estimator: OnBasis, x: str) -> str:
    """Columns, standardised and cut, beside the products of pairs: (n, p + q)."""
    basis = estimator.basis_
    graph.add("Gather", [x, graph.constant("columns", basis.columns_)], "raw_columns", axis=1)  # (n, p)
    graph.add("Sub", ["raw_columns", graph.constant("column_mean", basis.mean_)], "centred")
    graph.add("Mul", ["centred", graph.constant("per_std", basis.per_std_)], "standardised")
    limits = (graph.constant(name, np.float32(value)) for name, value in (("low", -LIMIT), ("high", LIMIT)))
    graph.add("Clip", ["standardised", *limits], "z")
    if not len(basis.pairs_):
        return _margins(graph, estimator.head_, "z")
    for name, side in (("one", basis.pairs_[:, 0]), ("other", basis.pairs_[:, 1])):
        graph.add("Gather", ["z", graph.constant(f"{name}_of_pair", side)], f"pair_{name}", axis=1)  # (n, q)
    graph.add("Mul", ["pair_one", "pair_other"], "product")
    graph.add("Sub", ["product", graph.constant("pair_mean", basis.pair_mean_)], "centred_product")
    graph.add("Mul", ["centred_product", graph.constant("pair_per_std", basis.pair_per_std_)], "pairs")
    graph.add("Concat", ["z", "pairs"], "basis", axis=1)
    return _margins(graph, estimator.head_, "basis")


def _linear(graph: _Graph, x: str, weights: Floats, intercepts: Floats, output: str) -> str:
    """x @ weights + intercepts."""
    product = graph.add("MatMul", [x, graph.single(f"{output}_weights", weights)], f"{output}_product")
    return graph.add("Add", [product, graph.single(f"{output}_intercepts", intercepts)], output)


def _logistic(graph: _Graph, estimator: ScaleLogistic, x: str) -> str:
    return _linear(graph, x, *estimator.on_features(), "logistic")


def _constant(graph: _Graph, estimator: Constant, x: str) -> str:
    """The features are read and weighed at nothing, so that every router has the same inputs."""
    nothing = np.zeros((estimator.n_features_in_, graph.num_scales))
    return _linear(graph, x, nothing, estimator.margins_, "constant")


def _network(graph: _Graph, estimator: ScaleNetwork, x: str) -> str:
    _linear(graph, x, estimator.hidden_, estimator.bias_, "hidden")  # (n, h)
    graph.add("Tanh", ["hidden"], "active")
    return _linear(graph, "active", estimator.out_, estimator.intercepts_, "network")


def _lookup(graph: _Graph, estimator: TaskLookup, x: str) -> str:
    _linear(graph, x, estimator.kind_weights_, estimator.kind_intercepts_, "kind")  # (n, T)
    graph.add("Softmax", ["kind"], "kind_probability", axis=1)
    graph.add("MatMul", ["kind_probability", graph.single("means_of_kind", estimator.table_)], "looked_up")
    return _log_odds(graph, "looked_up")


def _neighbours(graph: _Graph, estimator: Neighbours, x: str) -> str:
    points = estimator.points_  # (N, p)
    graph.add("MatMul", [x, graph.single("stretch", estimator.stretch_)], "at")  # (n, p)
    graph.add("Mul", ["at", "at"], "at_squared")
    graph.add("ReduceSum", ["at_squared", graph.constant("columns_axis", np.array([1]))], "length", keepdims=1)
    graph.add("MatMul", ["at", graph.single("points", -2 * points.T)], "towards")  # (n, N)
    graph.add("Add", ["towards", graph.single("point_length", np.square(points).sum(axis=1))], "towards_point")
    graph.add("Add", ["towards_point", "length"], "squared")
    count = graph.constant("neighbours", np.array([estimator.reach + 1]))
    graph.nodes.append(
        helper.make_node("TopK", ["squared", count], ["nearest", "nearest_index"], name="nearest", axis=1, largest=0)
    )
    graph.add("Gather", ["nearest", graph.constant("farthest", np.array([estimator.reach]))], "reach", axis=1)
    graph.add("Add", ["reach", graph.constant("floor", np.float32(NEIGHBOUR_FLOOR))], "reach_above_zero")
    graph.add("Div", ["squared", "reach_above_zero"], "part_of_reach")
    one = graph.constant("one_weight", np.float32(1))
    graph.add("Sub", [one, "part_of_reach"], "nearness")
    graph.add("Max", ["nearness", graph.constant("no_weight", np.float32(0))], "weight")  # (n, N)
    # One more column counts the weights; the prior is one row of weight 1.
    scores = np.column_stack([estimator.scores_, np.ones(len(points))])
    graph.add("MatMul", ["weight", graph.single("neighbour_scores", scores)], "weighted")  # (n, K + 1)
    graph.add("Add", ["weighted", graph.single("prior", np.append(estimator.prior_, 1))], "sums")
    several = graph.constant("score_columns", np.arange(graph.num_scales))
    graph.add("Gather", ["sums", several], "score_sums", axis=1)
    graph.add("Gather", ["sums", graph.constant("count_column", np.array([graph.num_scales]))], "weight_sum", axis=1)
    graph.add("Div", ["score_sums", "weight_sum"], "mean_of_near")
    return _log_odds(graph, "mean_of_near")


def _log_odds(graph: _Graph, probability: str) -> str:
    least = graph.constant("least", np.float32(LEAST_PROBABILITY))
    most = graph.constant("most", np.float32(1 - LEAST_PROBABILITY))
    graph.add("Clip", [probability, least, most], "kept_finite")
    graph.add("Sub", [graph.constant("whole", np.float32(1)), "kept_finite"], "wrong")
    graph.add("Div", ["kept_finite", "wrong"], "odds")
    return graph.add("Log", ["odds"], "log_of_odds")


def _blend(graph: _Graph, estimator: Blend, x: str) -> str:
    parts = [_margins(graph, part, x) for part in estimator.parts_.values()]
    total = parts[0]
    for part in parts[1:]:
        total = graph.add("Add", [total, part], f"{total}_and_{part}")
    return graph.add("Mul", [total, graph.constant("per_part", np.float32(1 / len(parts)))], "blend")


def _trees(graph: _Graph, estimator: PooledTrees, x: str) -> str:
    """Each row once a scale with log2 m as the last feature, one tree ensemble, and back to (n, K)."""
    scales = estimator.scales_log2_.astype(np.float32)
    graph.add("Unsqueeze", [x, graph.constant("axis", np.array([1]))], "one_each")  # (n, 1, d)
    graph.add("Shape", [x], "shape")
    graph.add("Gather", ["shape", graph.constant("first", np.array([0]))], "n", axis=0)
    graph.add("Gather", ["shape", graph.constant("second", np.array([1]))], "d", axis=0)
    k, one = graph.constant("K", np.array([len(scales)])), graph.constant("one", np.array([1]))
    graph.add("Concat", ["n", k, "d"], "spread", axis=0)
    graph.add("Expand", ["one_each", "spread"], "repeated")  # (n, K, d)
    graph.add("Concat", ["n", k, one], "column", axis=0)
    graph.add("Expand", [graph.constant("log2_m", scales[None, :, None]), "column"], "scale_column")  # (n, K, 1)
    graph.add("Concat", ["repeated", "scale_column"], "with_scale", axis=2)  # (n, K, d + 1)
    width = graph.constant("width", np.array([-1, estimator.n_features_in_ + 1]))
    graph.add("Reshape", ["with_scale", width], "pooled")  # (nK, d + 1)
    graph.add("TreeEnsembleRegressor", ["pooled"], "raw", domain="ai.onnx.ml", **tree_attributes(estimator))  # (nK, 1)
    return graph.add("Reshape", ["raw", graph.constant("back", np.array([-1, len(scales)]))], "tree_margins")  # (n, K)


_MARGINS: dict[type[ScaleEstimator], Callable[[_Graph, Any, str], str]] = {
    OnBasis: _on_basis,
    Blend: _blend,
    PooledTrees: _trees,
    ScaleLogistic: _logistic,
    ScaleNetwork: _network,
    Neighbours: _neighbours,
    TaskLookup: _lookup,
    Constant: _constant,
}


def tree_attributes(estimator: PooledTrees) -> dict[str, Any]:
    """LightGBM's trees as the attributes of ONNX's TreeEnsembleRegressor."""
    nodes: dict[str, list[Any]] = {
        name: []
        for name in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids",
                     "missing_value_tracks_true")
    }  # fmt: skip
    leaves: dict[str, list[Any]] = {"treeids": [], "nodeids": [], "ids": [], "weights": []}
    for tree, dumped in enumerate(estimator.booster_.dump_model()["tree_info"]):
        _walk(dumped["tree_structure"], tree, nodes, leaves)
    return {f"nodes_{name}": values for name, values in nodes.items()} | {
        f"target_{name}": values for name, values in leaves.items()
    } | {"n_targets": 1, "post_transform": "NONE"}  # fmt: skip


def _walk(root: dict[str, Any], tree: int, nodes: dict[str, list[Any]], leaves: dict[str, list[Any]]) -> None:
    """Number the nodes of one tree in the order they are met, branches before what hangs on them."""
    queue, numbered = [(root, 0)], 1
    while queue:
        node, number = queue.pop()
        nodes["treeids"].append(tree)
        nodes["nodeids"].append(number)
        nodes["missing_value_tracks_true"].append(0)
        if "leaf_value" in node:
            row: tuple[Any, ...] = (0, 0.0, "LEAF", 0, 0)
            for name, value in zip(leaves, (tree, number, 0, float(node["leaf_value"])), strict=True):
                leaves[name].append(value)
        else:
            left, right = numbered, numbered + 1
            numbered += 2
            row = (node["split_feature"], float(split_value(node["threshold"])), "BRANCH_LEQ", left, right)
            queue += [(node["left_child"], left), (node["right_child"], right)]
        for name, value in zip(("featureids", "values", "modes", "truenodeids", "falsenodeids"), row, strict=True):
            nodes[name].append(value)


def split_value(threshold: float) -> np.float32:
    """The float32 v with which x <= v sends every float32 x where LightGBM sends it.

    LightGBM takes everything within `_ZERO` of zero for zero, `_ZERO` included, and has thresholds exactly there.
    """
    if -float(_ZERO) <= threshold < 0:
        return np.nextafter(-_ZERO, np.float32(-np.inf))
    if 0 <= threshold < float(_ZERO):
        return _ZERO
    return floor_to_float32(threshold)


def floor_to_float32(threshold: float) -> np.float32:
    """The largest float32 that is not above a float64: for float32 values, x <= both mean the same."""
    rounded = np.float32(threshold)
    return rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf))
