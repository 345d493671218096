"""A reader as ONNX: the picture's part, run once a view, and the question's part, inside router.onnx.

Line by line what `router.estimators.reader_training.Network` computes. Weights lie in half precision and are read in
single; runtimes turn them once, when they open the file.

Letters: n rows, C cells of all grids, D width of the language model, T tokens, h channels, s slots, K scales.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from router.estimators.basis import LIMIT
from router.estimators.reader import PROJECTED, Reader
from router.estimators.reader_shape import CHANNELS, HOPS, SLOTS

from .writer import GraphWriter

PICTURE, QUESTION = "picture", "words"
_EPSILON = 1e-5
_NOWHERE = -1e9
_END = np.iinfo(np.int64).max


def picture_graph(estimator: Reader) -> onnx.ModelProto:
    """`patches` (n, P, D) -> `picture` (n, C, 2h): keys and values of all grids."""
    shape = estimator.shape_
    graph = GraphWriter(shape.num_scales)
    side, wide = shape.sides[0], 2 * CHANNELS
    seen = _linear(graph, "patches", "patch", estimator)  # (n, P, 2h)
    grids = [seen]
    for cells in shape.sides[1:]:
        step = side // cells
        _reshape(graph, seen, [0, cells, step, cells, step, wide], f"blocks_{cells}")
        graph.add("ReduceMean", [f"blocks_{cells}"], f"mean_{cells}", axes=[2, 4], keepdims=0)
        grids.append(_reshape(graph, f"mean_{cells}", [0, cells * cells, wide], f"cells_{cells}"))
    graph.add("Concat", grids, "all_cells", axis=1)
    graph.add("Add", ["all_cells", _weight(graph, "place", estimator)], PICTURE)
    info, floats = helper.make_tensor_value_info, TensorProto.FLOAT
    patches = info("patches", floats, ["n", side * side, len(estimator.projection_)])
    return graph.bare([patches], [info(PICTURE, floats, ["n", shape.cells, wide])])


def reader_margins(graph: GraphWriter, estimator: Reader, x: str) -> str:
    """Margins (n, K) from `picture` (n, C, 2h), `words` (n, T, D), zero behind a question's end, and features `x`."""
    shape, floats = estimator.shape_, TensorProto.FLOAT
    graph.takes(PICTURE, floats, ["n", shape.cells, 2 * CHANNELS])
    graph.takes(QUESTION, floats, ["n", "T", len(estimator.projection_)])
    half = graph.constant("halves", np.array([CHANNELS, CHANNELS]))
    graph.nodes.append(helper.make_node("Split", [PICTURE, half], ["keys", "values"], name="split", axis=-1))
    graph.add("Transpose", ["keys"], "keys_across", perm=[0, 2, 1])  # (n, h, C)
    slots = _slots(graph, estimator)  # (n, s, h)
    for hop in range(HOPS):
        read = _read(graph, estimator, slots, hop)
        learned = _silu(graph, _linear(graph, read, f"learn.{hop}", estimator))
        slots = graph.add("Add", [slots, learned], f"slots_learned_{hop}")
        whole = _reshape(graph, slots, [0, SLOTS * CHANNELS], f"whole_{hop}")
        mixed = _silu(graph, _linear(graph, whole, f"mix.{hop}", estimator))
        apart = _reshape(graph, mixed, [0, SLOTS, CHANNELS], f"mixed_{hop}")
        slots = graph.add("Add", [slots, apart], f"slots_mixed_{hop}")
    _reshape(graph, slots, [0, SLOTS * CHANNELS], "found")
    normed = [_weight(graph, f"norm.{part}", estimator) for part in ("weight", "bias")]
    graph.add("LayerNormalization", ["found", *normed], "found_normed", axis=-1, epsilon=_EPSILON)
    features = _silu(graph, _linear(graph, _standardised(graph, estimator, x), "feature", estimator))
    graph.add("Concat", ["found_normed", features], "found_and_seen", axis=-1)
    hidden = _silu(graph, _linear(graph, "found_and_seen", "hidden", estimator))
    return _linear(graph, hidden, "out", estimator)


def _slots(graph: GraphWriter, estimator: Reader) -> str:
    """The question, gathered in a few slots: (n, s, h)."""
    graph.add("Abs", [QUESTION], "sizes")
    graph.add("ReduceMax", ["sizes"], "largest", axes=[-1], keepdims=1)  # (n, T, 1)
    nothing, whole = graph.constant("nothing", np.float32(0)), graph.constant("all_of_it", np.float32(1))
    graph.add("LessOrEqual", ["largest", nothing], "missing")
    graph.add("Where", ["missing", nothing, whole], "there")
    graph.add("Shape", [QUESTION], "words_shape")
    graph.add("Gather", ["words_shape", graph.constant("second_axis", np.array([1]))], "length", axis=0)  # (1,)
    first, along = graph.constant("from_start", np.array([0])), graph.constant("along_rows", np.array([0]))
    graph.add("Slice", [_weight(graph, "order", estimator), first, "length", along], "places")  # (T, h)
    graph.add("Add", [_linear(graph, QUESTION, "word", estimator), "places"], "placed")
    graph.add("Mul", [_silu(graph, "placed"), "there"], "known")
    graph.add("Add", ["known", _silu(graph, _beside(graph, estimator))], "in_context")
    graph.add("Mul", ["in_context", "there"], "context")  # (n, T, h)
    gathered = _linear(graph, "context", "gather", estimator)  # (n, T, s)
    graph.add("Where", ["missing", graph.constant("nowhere", np.float32(_NOWHERE)), gathered], "sought")
    graph.add("Softmax", ["sought"], "share", axis=1)
    graph.add("Transpose", ["share"], "share_of_slot", perm=[0, 2, 1])
    return graph.add("MatMul", ["share_of_slot", "context"], "slots")


def _beside(graph: GraphWriter, estimator: Reader) -> str:
    """Each word with the two beside it, nothing beyond the ends: (n, T, h)."""
    graph.add("Slice", ["known", *_span(graph, "one_word", 0, 1)], "one_word")
    graph.add("Sub", ["one_word", "one_word"], "no_word")  # (n, 1, h)
    graph.add("Slice", ["known", *_span(graph, "but_last", 0, -1)], "but_last")
    graph.add("Slice", ["known", *_span(graph, "but_first", 1, _END)], "but_first")
    graph.add("Concat", ["no_word", "but_last"], "before", axis=1)
    graph.add("Concat", ["but_first", "no_word"], "behind", axis=1)
    parts = [
        graph.add("MatMul", [at, _weight(graph, f"beside.{i}.weight", estimator, across=True)], f"beside_{at}")
        for i, at in enumerate(("before", "known", "behind"))
    ]
    graph.add("Add", parts[:2], "two_beside")
    graph.add("Add", ["two_beside", parts[2]], "three_beside")
    return graph.add("Add", ["three_beside", _weight(graph, "beside.1.bias", estimator)], "beside")


def _read(graph: GraphWriter, estimator: Reader, slots: str, hop: int) -> str:
    """What a slot finds on every grid, beside what it holds: (n, s, h + grids * (h + 3))."""
    asked = _linear(graph, slots, f"ask.{hop}", estimator)
    graph.add("MatMul", [asked, "keys_across"], f"products_{hop}")  # (n, s, C)
    scaled = graph.constant(f"per_root_{hop}", np.float32(CHANNELS**-0.5))
    scores = graph.add("Mul", [f"products_{hop}", scaled], f"scores_{hop}")
    found, start = [slots], 0
    for side in estimator.shape_.sides:
        at, end = f"{hop}_{side}", start + side**2
        graph.add("Slice", [scores, *_span(graph, f"scores_{at}", start, end, axis=2)], f"scores_{at}")
        if hop == 0:
            graph.add("Slice", ["values", *_span(graph, f"values_{side}", start, end)], f"values_{side}")
        graph.add("Softmax", [f"scores_{at}"], f"looks_{at}", axis=-1)
        found.append(graph.add("MatMul", [f"looks_{at}", f"values_{side}"], f"read_{at}"))
        found.append(graph.add("ReduceMax", [f"scores_{at}"], f"most_{at}", axes=[-1], keepdims=1))
        graph.add("Tanh", [f"scores_{at}"], f"bent_{at}")
        found.append(graph.add("ReduceMean", [f"bent_{at}"], f"wide_{at}", axes=[-1], keepdims=1))
        found.append(graph.add("ReduceMean", [f"scores_{at}"], f"mean_{at}", axes=[-1], keepdims=1))
        start = end
    return graph.add("Concat", found, f"findings_{hop}", axis=-1)


def _standardised(graph: GraphWriter, estimator: Reader, x: str) -> str:
    graph.add("Sub", [x, graph.constant("feature_mean", estimator.mean_)], "feature_centred")
    graph.add("Mul", ["feature_centred", graph.constant("feature_per_std", estimator.per_std_)], "feature_spread")
    limits = [
        graph.constant(f"feature_{name}", np.float32(value)) for name, value in (("low", -LIMIT), ("high", LIMIT))
    ]
    return graph.add("Clip", ["feature_spread", *limits], "feature_z")


def _linear(graph: GraphWriter, x: str, layer: str, estimator: Reader) -> str:
    product = graph.add("MatMul", [x, _weight(graph, f"{layer}.weight", estimator, across=True)], f"{layer}_product")
    return graph.add("Add", [product, _weight(graph, f"{layer}.bias", estimator)], f"{layer}_sum")


def _weight(graph: GraphWriter, name: str, estimator: Reader, *, across: bool = False) -> str:
    """A weight in single precision; `across` as a product from the right takes it, (in, out)."""
    value = estimator.on_device(name)
    if across and name not in PROJECTED:
        value = value.T
    graph.constant(f"{name}_half", np.ascontiguousarray(value))
    return graph.add("Cast", [f"{name}_half"], name, to=TensorProto.FLOAT)


def _silu(graph: GraphWriter, x: str) -> str:
    graph.add("Sigmoid", [x], f"{x}_gate")
    return graph.add("Mul", [x, f"{x}_gate"], f"{x}_silu")


def _span(graph: GraphWriter, name: str, start: int, end: int, axis: int = 1) -> list[str]:
    """The inputs of a Slice."""
    parts = {"start": start, "end": end, "axis": axis}
    return [graph.constant(f"{name}_{part}", np.array([value])) for part, value in parts.items()]


def _reshape(graph: GraphWriter, x: str, shape: list[int], output: str) -> str:
    return graph.add("Reshape", [x, graph.constant(f"{output}_shape", np.array(shape))], output)
