"""A fitted router as router.onnx, written by hand with `onnx.helper`.

Letters: n rows, K scales, d features. Converters are not used: with calibrated trees they convert silently wrong
(reference/router.md, section 5).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from router.estimators.base import Floats, PlattScaling, ScaleEstimator
from router.estimators.novelty import Familiarity

from .margins import margins
from .writer import GraphWriter


def router_graph(
    estimator: ScaleEstimator,
    calibration: PlattScaling,
    p_value: Familiarity,
    known: dict[str, Any],
    *,
    d_image: int,
    d_question: int,
) -> onnx.ModelProto:
    """The whole decision as one graph. `known` is what the runtime must know of the router besides; it has `scales`,
    and `sizes`, ascending numbers for them, where they are no numbers themselves.

    Inputs, all float32: `image` (n, d_image), `question` (n, d_question), `price` (), `cost` (n or 1, k). Further
    inputs have a default, which leaves the choice at argmax(probability - price * cost / max(cost)), ties to the
    cheaper: `unit_cost` (), what a price is for, where that is not the dearest cost; `num_visual_tokens` (k,) the sizes
    of the scales on offer, if not those of the fit; `cap` (); `least_probability` (); `least_p_value` (). Outputs:
    `probability` (n, k), `choice` (n,) an index into the scales, `p_value` (n,).
    """
    scales = np.asarray(known.get("sizes", known["scales"]), np.float32)
    graph = GraphWriter(len(scales))
    graph.add("Concat", ["image", "question"], "features", axis=1)  # (n, d)
    margins_name = margins(graph, estimator, "features")
    graph.add("Mul", [margins_name, graph.constant("slope", np.asarray(calibration.slope_, np.float32))], "scaled")
    graph.add(
        "Add", ["scaled", graph.constant("intercept", np.asarray(calibration.intercept_, np.float32))], "calibrated"
    )
    _any_scale(graph, scales)
    _p_value(graph, p_value)
    _decision(graph)
    return graph.model(d_image, d_question, known)


def _any_scale(graph: GraphWriter, scales: Floats) -> None:
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


def _p_value(graph: GraphWriter, p_value: Familiarity) -> None:
    """The conformal p-value: the rank of the squared distance among those of the calibration rows, (n,)."""
    mean, directions = p_value.mean_.astype(np.float32), p_value.directions_.astype(np.float32)
    graph.add("Sub", ["features", graph.constant("usual", mean)], "unusual")  # (n, d)
    graph.add("MatMul", ["unusual", graph.constant("directions", directions)], "off")  # (n, p)
    graph.add("Mul", ["off", "off"], "off_squared")
    last = graph.constant("last_axis", np.array([1]))
    graph.add("ReduceSum", ["off_squared", last], "distance", keepdims=1)  # (n, 1)
    calibration = p_value.calibration_.astype(np.float32)
    graph.add("LessOrEqual", ["distance", graph.constant("distances", calibration)], "farther")  # (n, c)
    graph.add("Cast", ["farther"], "farther_count", to=TensorProto.FLOAT)
    graph.add("ReduceSum", ["farther_count", last], "farther_counts", keepdims=0)  # (n,)
    graph.add("Add", ["farther_counts", "unity"], "rank")
    graph.add("Div", ["rank", graph.constant("ranks", np.float32(len(calibration) + 1))], "p_value")


def _decision(graph: GraphWriter) -> None:
    """The best utility among what the cap allows and is likely enough; the likeliest where nothing is; the finest
    allowed for what is out of distribution."""
    graph.default("cap", np.float32(np.inf))
    graph.default("least_probability", np.float32(0))
    graph.default("least_p_value", np.float32(0))
    graph.default("unit_cost", np.float32(0))
    never = graph.constant("never", np.float32(-1e30))
    graph.add("ReduceMax", ["cost"], "dearest", keepdims=0)
    graph.add("LessOrEqual", ["unit_cost", "zero"], "no_unit")
    graph.add("Where", ["no_unit", "dearest", "unit_cost"], "unit")
    graph.add("Div", ["cost", "unit"], "relative_cost")  # (n or 1, k)
    graph.add("Mul", ["price", "relative_cost"], "priced")
    graph.add("Sub", ["probability", "priced"], "utility")  # (n, k)
    graph.add("LessOrEqual", ["cost", "cap"], "allowed")  # (n or 1, k)
    graph.add("GreaterOrEqual", ["probability", "least_probability"], "likely")  # (n, k)
    graph.add("And", ["likely", "allowed"], "good")
    graph.add("Where", ["good", "utility", never], "good_utility")
    graph.add("Where", ["allowed", "probability", never], "allowed_probability")
    graph.add("ReduceMax", ["good_utility"], "best_utility", axes=[1], keepdims=1)  # (n, 1)
    graph.add("GreaterOrEqual", ["best_utility", graph.constant("tenth_of_never", np.float32(-1e29))], "some_good")
    graph.add("Where", ["some_good", "good_utility", "allowed_probability"], "merit")
    graph.add("Where", ["allowed", "num_visual_tokens", never], "fineness")  # (n or 1, k)
    graph.add("Unsqueeze", ["p_value", "last_axis"], "p_value_column")  # (n, 1)
    graph.add("Less", ["p_value_column", "least_p_value"], "strange")
    graph.add("Where", ["strange", "fineness", "merit"], "final")  # (n, k)
    # Scales ascend and the first of equals is taken, so ties go to the cheaper.
    graph.add("ArgMax", ["final"], "choice", axis=1, keepdims=0)  # (n,)
