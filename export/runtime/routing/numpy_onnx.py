"""Runs router.onnx in numpy, for a device without onnxruntime: reads the file's protobuf and walks its nodes.

It knows the operators that `router.graph` writes and no others, and shares no code with what wrote the file or with
onnxruntime, so a test of one against the other is a test of both.

Source: the message layout is onnx.proto of ONNX 1.17; the trees are TreeEnsembleRegressor of ai.onnx.ml 3.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.errors import MvlmError

Array = NDArray[Any]
_LARGEST_BYTES = 64 * 2**20
_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Node:
    """One operator: what it reads and writes, and its attributes. Some write several arrays, `outputs`."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]
    outputs: tuple[str, ...] = ()


class GraphWalk:
    """A small ONNX graph, ready to run: `run` takes what an onnxruntime session's `run` takes."""

    def __init__(self, path: Path) -> None:
        if not path.is_file() or path.stat().st_size > _LARGEST_BYTES:
            raise MvlmError(f"{path} is missing, or too large for a router: fit and export again")
        try:
            model = fields_of(memoryview(path.read_bytes()))
            graph = fields_of(model[7][0])
            self.metadata = {_text(pair[1][0]): _text(pair[2][0]) for pair in map(fields_of, model[14])}
            self._constants = dict(map(_tensor, graph[5]))
            self._nodes = [_node(node) for node in graph[1]]
            self.outputs = [_text(fields_of(value)[1][0]) for value in graph[12]]
            # Weights that lie in half precision are turned once.
            for node in [node for node in self._nodes if node.op == "Cast" and node.inputs[0] in self._constants]:
                turned = _OPERATORS["Cast"](node.attributes, self._constants[node.inputs[0]])
                self._constants[node.output] = turned
                self._nodes.remove(node)
            self._trees = {n.output: Trees(n.attributes) for n in self._nodes if n.op == "TreeEnsembleRegressor"}
        except (IndexError, KeyError, ValueError, struct.error) as error:
            raise MvlmError(f"{path} is no router ({type(error).__name__}: {error}): fit and export again") from None
        unknown = {node.op for node in self._nodes} - ROUTER_OPERATORS
        if unknown:
            raise MvlmError(f"{path} has operators that numpy cannot walk ({', '.join(sorted(unknown))}): upgrade mvlm")

    def run(self, names: Sequence[str] | None, feeds: dict[str, Array]) -> list[Array]:
        """The outputs of these names, in their order; constants that are inputs too are replaced by what is fed."""
        values: dict[str, Array] = self._constants | feeds
        for node in self._nodes:
            inputs = [values[name] for name in node.inputs]
            if node.op == "TreeEnsembleRegressor":
                values[node.output] = self._trees[node.output](inputs[0])
            elif node.op == "Split":
                parts = np.split(inputs[0], np.cumsum(inputs[1])[:-1], axis=node.attributes["axis"])
                values.update(zip(node.outputs, parts, strict=True))
            else:
                values[node.output] = _OPERATORS[node.op](node.attributes, *inputs)
        return [values[name] for name in names or self.outputs]


class Trees:
    """Trees of x <= threshold, all walked at once, one level a step."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        tree, node = (np.asarray(attributes[f"nodes_{name}"], np.int64) for name in ("treeids", "nodeids"))
        wide = node.max() + 1
        key = tree * wide + node
        order = np.argsort(key)
        place = {name: np.asarray(attributes[f"nodes_{name}"])[order] for name in ("featureids", "values", "modes")}
        self._leaf = place["modes"] == "LEAF"
        self._feature = place["featureids"].astype(np.int64)
        self._threshold = place["values"].astype(np.float32)
        here = np.arange(len(key))
        self._yes, self._no = (
            np.where(self._leaf, here, np.searchsorted(key[order], (tree * wide + np.asarray(child))[order]))
            for child in (attributes["nodes_truenodeids"], attributes["nodes_falsenodeids"])
        )
        leaves = np.asarray(attributes["target_treeids"]) * wide + np.asarray(attributes["target_nodeids"])
        self._weight = np.zeros(len(key))
        self._weight[np.searchsorted(key[order], leaves)] = attributes["target_weights"]
        self._roots = np.searchsorted(key[order], np.unique(tree) * wide)

    def __call__(self, x: Array) -> Array:
        """(n, d) -> (n, 1): the sum over trees."""
        at = np.tile(self._roots, (len(x), 1))  # (n, T)
        rows = np.arange(len(x))[:, None]
        while not self._leaf[at].all():
            left = x[rows, self._feature[at]] <= self._threshold[at]
            at = np.where(left, self._yes[at], self._no[at])
        return self._weight[at].sum(axis=1, keepdims=True).astype(np.float32)


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _softmax(attributes: dict[str, Any], x: Array) -> Array:
    raised = np.exp(x - x.max(axis=attributes["axis"], keepdims=True))
    return raised / raised.sum(axis=attributes["axis"], keepdims=True)


def _smallest(attributes: dict[str, Any], x: Array, k: Array) -> Array:
    """TopK for its first output alone, over the last axis."""
    largest = np.sort(x, axis=-1)[..., ::-1] if attributes["largest"] else np.sort(x, axis=-1)
    return largest[..., : int(k[0])]


def _reshape(attributes: dict[str, Any], x: Array, shape: Array) -> Array:
    return x.reshape([n if n else x.shape[i] for i, n in enumerate(shape.tolist())])


def _reduced(reduce: Callable[..., Array], attributes: dict[str, Any], x: Array, axes: Array | None = None) -> Array:
    axis = attributes.get("axes") if axes is None else axes.tolist()
    return np.asarray(reduce(x, axis=None if axis is None else tuple(axis), keepdims=bool(attributes["keepdims"])))


def _quietly(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda attributes, *inputs: function(*inputs)


def _slice(attributes: dict[str, Any], x: Array, starts: Array, ends: Array, axes: Array) -> Array:
    spans = [slice(None)] * x.ndim
    for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist(), strict=True):
        spans[axis] = slice(start, end)
    return x[tuple(spans)]


def _layer_norm(attributes: dict[str, Any], x: Array, weight: Array, bias: Array) -> Array:
    """Over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(attributes["epsilon"])) * weight + bias


_OPERATORS: dict[str, Callable[..., Array]] = {
    "Abs": _quietly(np.abs),
    "Add": _quietly(np.add),
    "And": _quietly(np.logical_and),
    "ArgMax": lambda a, x: np.expand_dims(x.argmax(a["axis"]), a["axis"]) if a["keepdims"] else x.argmax(a["axis"]),
    "Cast": lambda a, x: x.astype(_DTYPES[a["to"]]),
    "Clip": _quietly(np.clip),
    "Concat": lambda a, *xs: np.concatenate(xs, axis=a["axis"]),
    "Div": _quietly(np.divide),
    "Expand": _quietly(lambda x, shape: x * np.ones(shape, x.dtype)),
    "Gather": lambda a, x, index: np.take(x, index, axis=a.get("axis", 0)),
    "GreaterOrEqual": _quietly(np.greater_equal),
    "LayerNormalization": _layer_norm,
    "Less": _quietly(np.less),
    "LessOrEqual": _quietly(np.less_equal),
    "Log": _quietly(np.log),
    "MatMul": _quietly(np.matmul),
    "Max": _quietly(np.maximum),
    "Min": _quietly(np.minimum),
    "Mul": _quietly(np.multiply),
    "ReduceMean": lambda a, x: _reduced(np.mean, a, x),
    "ReduceMax": lambda a, x: _reduced(np.max, a, x),
    "ReduceSum": lambda a, x, axes: _reduced(np.sum, a, x, axes),
    "Reshape": _reshape,
    "Shape": _quietly(lambda x: np.asarray(x.shape, np.int64)),
    "Sigmoid": _quietly(_sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Sub": _quietly(np.subtract),
    "Tanh": _quietly(np.tanh),
    "TopK": _smallest,
    "Transpose": lambda a, x: np.transpose(x, a["perm"]),
    "Unsqueeze": _quietly(lambda x, axes: np.expand_dims(x, tuple(axes.tolist()))),
    "Where": _quietly(np.where),
}


# All that a router's graph may hold: none of them runs for longer than its inputs are large.
ROUTER_OPERATORS = frozenset({*_OPERATORS, "TreeEnsembleRegressor", "Split"})


def fields_of(message: memoryview) -> defaultdict[int, list[Any]]:
    """A protobuf message as field number -> values: ints as they are, strings and messages as bytes."""
    found: defaultdict[int, list[Any]] = defaultdict(list)
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        value: Any
        if kind == _VARINT:
            value, at = _varint(message, at)
        else:
            size = {_FIXED32: 4, _FIXED64: 8}.get(kind)
            if size is None and kind != _BYTES:
                raise ValueError(f"wire type {kind}")
            if size is None:
                size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
            if at > len(message):
                raise ValueError("the file ends too early")
        found[tag >> 3].append(value)
    return found


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return (value - (1 << 64) if value >> 63 else value), at


def _ints(values: list[Any]) -> Iterator[int]:
    """A repeated integer: one value a field, or many packed into one."""
    for value in values:
        if isinstance(value, int):
            yield value
        else:
            at = 0
            while at < len(value):
                one, at = _varint(value, at)
                yield one


def _floats(values: list[Any]) -> Array:
    return np.frombuffer(b"".join(values), "<f4")


def _text(value: memoryview) -> str:
    return bytes(value).decode()


def _tensor(message: memoryview) -> tuple[str, Array]:
    fields = fields_of(message)
    dtype, shape = _DTYPES[fields[2][0]], list(_ints(fields[1]))
    values: Array
    if fields[9]:
        values = np.frombuffer(fields[9][0], dtype)
    else:
        values = _floats(fields[4]) if fields[4] else np.asarray(list(_ints(fields[5] or fields[7])))
    return _text(fields[8][0]), values.astype(dtype).reshape(shape)


def _node(message: memoryview) -> Node:
    fields = fields_of(message)
    inputs = tuple(_text(name) for name in fields[1])
    outputs = tuple(_text(name) for name in fields[2])
    return Node(_text(fields[4][0]), inputs, outputs[0], dict(map(_attribute, fields[5])), outputs)


def _attribute(message: memoryview) -> tuple[str, Any]:
    fields = fields_of(message)
    kind = fields[20][0]
    if kind not in _ATTRIBUTES:
        raise ValueError(f"an attribute of type {kind}")
    return _text(fields[1][0]), _ATTRIBUTES[kind](fields)


# AttributeProto.AttributeType: FLOAT, INT, STRING, FLOATS, INTS, STRINGS.
_ATTRIBUTES: dict[int, Callable[[defaultdict[int, list[Any]]], Any]] = {
    1: lambda fields: float(_floats(fields[2])[0]),
    2: lambda fields: fields[3][0],
    3: lambda fields: _text(fields[4][0]),
    6: lambda fields: _floats(fields[7]),
    7: lambda fields: list(_ints(fields[8])),
    8: lambda fields: [_text(one) for one in fields[9]],
}
