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

from .estimators import Constant, PlattScaling, PooledTrees, ScaleEstimator, ScaleLogistic
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
    for kind, write in _MARGINS.items():
        if isinstance(estimator, kind):
            write(graph, estimator)
            break
    else:
        raise TypeError(f"no graph is written for {type(estimator).__name__}")
    graph.add("Mul", ["margins", graph.constant("slope", np.float32(calibration.slope_))], "scaled")
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


def _logistic_margins(graph: _Graph, estimator: ScaleLogistic) -> None:
    weights = estimator.weights_ / estimator.std_[:, None]  # (d, K)
    intercepts = estimator.intercepts_ - estimator.mean_ @ weights  # (K,)
    graph.add("MatMul", ["features", graph.constant("weights", weights.astype(np.float32))], "product")  # (n, K)
    graph.add("Add", ["product", graph.constant("intercepts", intercepts.astype(np.float32))], "margins")


def _constant_margins(graph: _Graph, estimator: Constant) -> None:
    """The features are read and weighed at nothing, so that every router has the same inputs."""
    nothing = np.zeros((estimator.n_features_in_, graph.num_scales), np.float32)
    graph.add("MatMul", ["features", graph.constant("weights", nothing)], "product")  # (n, K)
    graph.add("Add", ["product", graph.constant("intercepts", estimator.margins_.astype(np.float32))], "margins")


def _tree_margins(graph: _Graph, estimator: PooledTrees) -> None:
    """Each row once a scale with log2 m as the last feature, one tree ensemble, and back to (n, K)."""
    scales = estimator.scales_log2_.astype(np.float32)
    graph.add("Unsqueeze", ["features", graph.constant("axis", np.array([1]))], "one_each")  # (n, 1, d)
    graph.add("Shape", ["features"], "shape")
    graph.add("Gather", ["shape", graph.constant("first", np.array([0]))], "n")
    graph.add("Gather", ["shape", graph.constant("second", np.array([1]))], "d")
    k, one = graph.constant("K", np.array([len(scales)])), graph.constant("one", np.array([1]))
    graph.add("Concat", ["n", k, "d"], "spread", axis=0)
    graph.add("Expand", ["one_each", "spread"], "repeated")  # (n, K, d)
    graph.add("Concat", ["n", k, one], "column", axis=0)
    graph.add("Expand", [graph.constant("log2_m", scales[None, :, None]), "column"], "scale_column")  # (n, K, 1)
    graph.add("Concat", ["repeated", "scale_column"], "with_scale", axis=2)  # (n, K, d + 1)
    width = graph.constant("width", np.array([-1, estimator.n_features_in_ + 1]))
    graph.add("Reshape", ["with_scale", width], "pooled")  # (nK, d + 1)
    graph.add("TreeEnsembleRegressor", ["pooled"], "raw", domain="ai.onnx.ml", **tree_attributes(estimator))  # (nK, 1)
    graph.add("Reshape", ["raw", graph.constant("back", np.array([-1, len(scales)]))], "margins")  # (n, K)


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


_MARGINS: dict[type[ScaleEstimator], Callable[[_Graph, Any], None]] = {
    PooledTrees: _tree_margins,
    ScaleLogistic: _logistic_margins,
    Constant: _constant_margins,
}
