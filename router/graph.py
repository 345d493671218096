"""A fitted router as router.onnx, written by hand with `onnx.helper`.

Letters: n rows, K scales, d features. Converters are not used: with calibrated trees they convert silently wrong
(reference/router.md, section 5). Thresholds are floored to float32, since a float64 threshold rounded up would send a
value that lies exactly on it to the other side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .estimators import Constant, PlattScaling, PooledTrees, ScaleEstimator, ScaleLogistic

OPSETS = (("", 17), ("ai.onnx.ml", 3))
_IR_VERSION = 8
# LightGBM's kZeroThreshold (include/LightGBM/meta.h).
_ZERO = np.float32(1e-35)


def router_graph(
    estimator: ScaleEstimator, calibration: PlattScaling, *, d_image: int, d_question: int, num_scales: int
) -> onnx.ModelProto:
    """Inputs `image` (n, d_image), `question` (n, d_question), `price` (), `cost` (K,), all float32; outputs
    `probability` (n, K) float32 and `choice` (n,) int64, an index into the scales, ties to the cheaper."""
    graph = _Graph(num_scales)
    graph.add("Concat", ["image", "question"], "features", axis=1)  # (n, d)
    if isinstance(estimator, PooledTrees):
        _tree_margins(graph, estimator)
    elif isinstance(estimator, ScaleLogistic):
        _logistic_margins(graph, estimator)
    elif isinstance(estimator, Constant):
        _constant_margins(graph, estimator, d_image + d_question)
    else:
        raise TypeError(f"no graph is written for {type(estimator).__name__}")
    graph.add("Mul", ["margins", graph.constant("slope", np.float32(calibration.slope_))], "scaled")
    graph.add("Add", ["scaled", graph.constant("intercept", np.float32(calibration.intercept_))], "calibrated")
    graph.add("Sigmoid", ["calibrated"], "probability")  # (n, K)
    graph.add("ReduceMax", ["cost"], "dearest", keepdims=0)
    graph.add("Div", ["cost", "dearest"], "relative_cost")  # (K,)
    graph.add("Mul", ["price", "relative_cost"], "priced")
    graph.add("Sub", ["probability", "priced"], "utility")  # (n, K)
    # Scales ascend and the first of equals is taken, so ties go to the cheaper.
    graph.add("ArgMax", ["utility"], "choice", axis=1, keepdims=0)  # (n,)
    return graph.model(d_image, d_question)


@dataclass
class _Graph:
    num_scales: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def model(self, d_image: int, d_question: int) -> onnx.ModelProto:
        floats, info = TensorProto.FLOAT, helper.make_tensor_value_info
        inputs = [
            info("image", floats, ["n", d_image]), info("question", floats, ["n", d_question]),
            info("price", floats, []), info("cost", floats, [self.num_scales]),
        ]  # fmt: skip
        outputs = [info("probability", floats, ["n", self.num_scales]), info("choice", TensorProto.INT64, ["n"])]
        graph = helper.make_graph(self.nodes, "router", inputs, outputs, self.constants)
        opsets = [helper.make_opsetid(*opset) for opset in OPSETS]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="mvlm")
        onnx.checker.check_model(model, full_check=True)
        return model


def _logistic_margins(graph: _Graph, estimator: ScaleLogistic) -> None:
    weights = estimator.weights_ / estimator.std_[:, None]  # (d, K)
    intercepts = estimator.intercepts_ - estimator.mean_ @ weights  # (K,)
    graph.add("MatMul", ["features", graph.constant("weights", weights.astype(np.float32))], "product")  # (n, K)
    graph.add("Add", ["product", graph.constant("intercepts", intercepts.astype(np.float32))], "margins")


def _constant_margins(graph: _Graph, estimator: Constant, d: int) -> None:
    """The features are read and weighed at nothing, so that every router has the same inputs."""
    nothing = np.zeros((d, graph.num_scales), np.float32)
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
