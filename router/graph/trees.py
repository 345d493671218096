"""LightGBM's trees as the attributes of ONNX's TreeEnsembleRegressor.

Thresholds are floored to float32, since a float64 threshold rounded up would send a value that lies exactly on it to
the other side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from router.estimators.learned import PooledTrees

# LightGBM's kZeroThreshold (include/LightGBM/meta.h).
_ZERO = np.float32(1e-35)


def tree_attributes(estimator: PooledTrees) -> dict[str, Any]:
    """Every node and leaf of a fitted ensemble, as `helper.make_node` takes them."""
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
