"""The margins of each kind of estimator, as nodes of router.onnx.

Letters: n rows, K scales, d features, h hidden units, T tasks, N points, p columns, q pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from router.estimators.averages import LEAST_PROBABILITY, NEIGHBOUR_FLOOR, Constant, Neighbours, TaskLookup
from router.estimators.base import Floats, ScaleEstimator
from router.estimators.basis import LIMIT
from router.estimators.candidates import Blend, OnBasis
from router.estimators.learned import PooledTrees, ScaleLogistic, ScaleNetwork
from router.estimators.reader import Reader

from .reader import reader_margins
from .trees import tree_attributes
from .writer import GraphWriter


def margins(graph: GraphWriter, estimator: ScaleEstimator, x: str) -> str:
    """The margins (n, K) of what stands under the name `x`."""
    for kind, write in _MARGINS.items():
        if isinstance(estimator, kind):
            return write(graph, estimator, x)
    raise TypeError(f"no graph is written for {type(estimator).__name__}")


def _on_basis(graph: GraphWriter, estimator: OnBasis, x: str) -> str:
    """Columns, standardised and cut, beside the products of pairs: (n, p + q)."""
    basis = estimator.basis_
    graph.add("Gather", [x, graph.constant("columns", basis.columns_)], "raw_columns", axis=1)  # (n, p)
    graph.add("Sub", ["raw_columns", graph.constant("column_mean", basis.mean_)], "centred")
    graph.add("Mul", ["centred", graph.constant("per_std", basis.per_std_)], "standardised")
    limits = (graph.constant(name, np.float32(value)) for name, value in (("low", -LIMIT), ("high", LIMIT)))
    graph.add("Clip", ["standardised", *limits], "z")
    if not len(basis.pairs_):
        return margins(graph, estimator.head_, "z")
    for name, side in (("one", basis.pairs_[:, 0]), ("other", basis.pairs_[:, 1])):
        graph.add("Gather", ["z", graph.constant(f"{name}_of_pair", side)], f"pair_{name}", axis=1)  # (n, q)
    graph.add("Mul", ["pair_one", "pair_other"], "product")
    graph.add("Sub", ["product", graph.constant("pair_mean", basis.pair_mean_)], "centred_product")
    graph.add("Mul", ["centred_product", graph.constant("pair_per_std", basis.pair_per_std_)], "pairs")
    graph.add("Concat", ["z", "pairs"], "basis", axis=1)
    return margins(graph, estimator.head_, "basis")


def _linear(graph: GraphWriter, x: str, weights: Floats, intercepts: Floats, output: str) -> str:
    """x @ weights + intercepts."""
    product = graph.add("MatMul", [x, graph.single(f"{output}_weights", weights)], f"{output}_product")
    return graph.add("Add", [product, graph.single(f"{output}_intercepts", intercepts)], output)


def _logistic(graph: GraphWriter, estimator: ScaleLogistic, x: str) -> str:
    return _linear(graph, x, *estimator.on_features(), "logistic")


def _constant(graph: GraphWriter, estimator: Constant, x: str) -> str:
    """The features are read and weighed at nothing, so that every router has the same inputs."""
    nothing = np.zeros((estimator.n_features_in_, graph.num_scales))
    return _linear(graph, x, nothing, estimator.margins_, "constant")


def _network(graph: GraphWriter, estimator: ScaleNetwork, x: str) -> str:
    _linear(graph, x, estimator.hidden_, estimator.bias_, "hidden")  # (n, h)
    graph.add("Tanh", ["hidden"], "active")
    return _linear(graph, "active", estimator.out_, estimator.intercepts_, "network")


def _lookup(graph: GraphWriter, estimator: TaskLookup, x: str) -> str:
    _linear(graph, x, estimator.kind_weights_, estimator.kind_intercepts_, "kind")  # (n, T)
    graph.add("Softmax", ["kind"], "kind_probability", axis=1)
    graph.add("MatMul", ["kind_probability", graph.single("means_of_kind", estimator.table_)], "looked_up")
    return _log_odds(graph, "looked_up")


def _neighbours(graph: GraphWriter, estimator: Neighbours, x: str) -> str:
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


def _log_odds(graph: GraphWriter, probability: str) -> str:
    least = graph.constant("least", np.float32(LEAST_PROBABILITY))
    most = graph.constant("most", np.float32(1 - LEAST_PROBABILITY))
    graph.add("Clip", [probability, least, most], "kept_finite")
    graph.add("Sub", [graph.constant("whole", np.float32(1)), "kept_finite"], "wrong")
    graph.add("Div", ["kept_finite", "wrong"], "odds")
    return graph.add("Log", ["odds"], "log_of_odds")


def _blend(graph: GraphWriter, estimator: Blend, x: str) -> str:
    parts = [margins(graph, part, x) for part in estimator.parts_.values()]
    total = parts[0]
    for part in parts[1:]:
        total = graph.add("Add", [total, part], f"{total}_and_{part}")
    return graph.add("Mul", [total, graph.constant("per_part", np.float32(1 / len(parts)))], "blend")


def _trees(graph: GraphWriter, estimator: PooledTrees, x: str) -> str:
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


_MARGINS: dict[type[ScaleEstimator], Callable[[GraphWriter, Any, str], str]] = {
    OnBasis: _on_basis,
    Blend: _blend,
    PooledTrees: _trees,
    ScaleLogistic: _logistic,
    ScaleNetwork: _network,
    Neighbours: _neighbours,
    TaskLookup: _lookup,
    Constant: _constant,
    Reader: reader_margins,
}
