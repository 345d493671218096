"""The nodes that engines differ in: norm, activation, rotation, cache and attention, in three dialects.

Letters: S positions of this step, T positions in sight (those in the cache and this step's), D width, H query heads,
K key-value heads, d head size. Where a shape begins with 1, a fused step may take any number of conversations.

`FusedDialect` is onnxruntime's own. The two others are what every ONNX engine may know, TensorRT among them:
`StandardDialect` has the operators of opset 24, `PrimitiveDialect` only what opset 20 had. In both of these the cache
stays outside of attention, whose one output is what TensorRT accepts (NVIDIA/TensorRT#4738), and the mask is an input:
engines disagree on which corner a causal flag means when there are more keys than queries (onnx/onnx#8068).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper

from .writer import Block, Geometry, Writer, cache_names, epsilon, gain

CacheForm = Literal["in place", "scatter", "concat"]
# onnxruntime's GroupQueryAttention rotates blocks of this many channels.
_ROTARY_BLOCK = 16
_FLOAT32 = np.dtype(np.float32)
_info = helper.make_tensor_value_info


class Dialect(Protocol):
    """What the writer of a language model calls; it knows no other node that engines differ in."""

    @property
    def opsets(self) -> tuple[tuple[str, int], ...]: ...

    @property
    def cache(self) -> CacheForm: ...

    @property
    def rows(self) -> str | int:
        """How many conversations a step can read on: 1, or the name of an axis when it may be any number of them."""

    def norm(self, writer: Writer, x: str, norm: Block, name: str) -> str:
        """RMS norm over the last axis."""

    def add_norm(self, writer: Writer, x: str, residual: str, norm: Block, name: str) -> tuple[str, str]:
        """The norm of a sum, and the sum."""

    def silu(self, writer: Writer, x: str) -> str: ...

    def attention(self, writer: Writer, qkv: Sequence[str], layer: int, geometry: Geometry, *, rotate: bool) -> str:
        """Rotate, append to the cache, attend: one packed (1, S, (H + 2K)d), or q, k, v apart -> (1, S, Hd)."""

    def inputs(self, geometry: Geometry, rows: str | int) -> list[onnx.ValueInfoProto]:
        """What a step needs besides embeddings and cache."""

    def cache_lengths(self) -> tuple[str | int, str | int]:
        """Positions of the cache that a step reads, and of the one that it writes."""


class FusedDialect:
    """Fused nodes of onnxruntime; its GroupQueryAttention appends to the cache in place (past is present)."""

    opsets: tuple[tuple[str, int], ...] = (("", 21), ("com.microsoft", 1))
    cache: CacheForm = "in place"
    rows: str | int = "rows"

    def norm(self, writer: Writer, x: str, norm: Block, name: str) -> str:
        attributes = {"epsilon": epsilon(norm), "axis": -1}
        return writer.node("SimplifiedLayerNormalization", [x, gain(writer, norm, name)], attributes=attributes)

    def add_norm(self, writer: Writer, x: str, residual: str, norm: Block, name: str) -> tuple[str, str]:
        normed, total = f"{name}.normed", f"{name}.sum"
        writer.node(
            "SkipSimplifiedLayerNormalization", [x, residual, gain(writer, norm, name)],
            outputs=[normed, "", "", total], domain="com.microsoft", attributes={"epsilon": epsilon(norm)},
        )  # fmt: skip
        return normed, total

    def silu(self, writer: Writer, x: str) -> str:
        # x * sigmoid(alpha * x) is SiLU at alpha 1, and onnxruntime runs it as one kernel.
        return writer.node("QuickGelu", [x], domain="com.microsoft", attributes={"alpha": 1.0})

    def attention(self, writer: Writer, qkv: Sequence[str], layer: int, geometry: Geometry, *, rotate: bool) -> str:
        past, present = cache_names(layer)
        within = _fits_rotary(geometry)
        if rotate and not within:
            qkv = self._rotated(writer, qkv, geometry)
        padded = [*qkv, "", ""][:3]  # one packed input stands in the place of the queries
        tables = ["rotary.cos", "rotary.sin"] if rotate and within else []
        return writer.node(
            "GroupQueryAttention", [*padded, *past, "seqlens_k", "total_sequence_length", *tables],
            outputs=[f"layers.{layer}.attended", *present], domain="com.microsoft",
            attributes={
                "num_heads": geometry.num_heads, "kv_num_heads": geometry.kv_heads, "do_rotary": int(bool(tables)),
            },
        )  # fmt: skip

    def _rotated(self, writer: Writer, qkv: Sequence[str], geometry: Geometry) -> list[str]:
        """Rotation by primitive nodes, for heads that the fused node does not rotate."""
        query, key, value = split_heads(writer, qkv[0], geometry) if len(qkv) == 1 else qkv
        by_head = writer.integers("by_head", [0, 0, -1, geometry.head_dim])
        side_by_side = writer.integers("side_by_side", [0, 0, -1])
        heads = [writer.node("Reshape", [x, by_head]) for x in (query, key)]  # (1, S, H|K, d)
        turned = [rotated_halves(writer, x, head_axis=2) for x in heads]
        return [*(writer.node("Reshape", [x, side_by_side]) for x in turned), value]

    def inputs(self, geometry: Geometry, rows: str | int) -> list[onnx.ValueInfoProto]:
        places = [] if _fits_rotary(geometry) else [_info("position_ids", TensorProto.INT64, [rows, "steps"])]
        return [
            *places,
            _info("seqlens_k", TensorProto.INT32, [rows]),
            _info("total_sequence_length", TensorProto.INT32, []),
        ]

    def cache_lengths(self) -> tuple[str | int, str | int]:
        return "positions", "positions"


@dataclass(frozen=True)
class StandardDialect:
    """Opset 24. `cache` "scatter" writes into a buffer of `positions`, "concat" makes a longer one each step."""

    cache: CacheForm
    positions: int
    opsets: tuple[tuple[str, int], ...] = (("", 24),)
    rows: str | int = 1

    def norm(self, writer: Writer, x: str, norm: Block, name: str) -> str:
        attributes = {"epsilon": epsilon(norm), "axis": -1}
        return writer.node("RMSNormalization", [x, gain(writer, norm, name)], attributes=attributes)

    def add_norm(self, writer: Writer, x: str, residual: str, norm: Block, name: str) -> tuple[str, str]:
        total = writer.node("Add", [x, residual])
        return self.norm(writer, total, norm, name), total

    def silu(self, writer: Writer, x: str) -> str:
        return writer.node("Mul", [x, writer.node("Sigmoid", [x])])

    def attention(self, writer: Writer, qkv: Sequence[str], layer: int, geometry: Geometry, *, rotate: bool) -> str:
        query, key, value = _heads(writer, qkv, geometry)  # (1, H|K, S, d)
        if rotate:
            query, key = self.rotated(writer, query), self.rotated(writer, key)
        past, present = cache_names(layer)
        key, value = (
            self._appended(writer, old, new, grown) for old, new, grown in zip(past, (key, value), present, strict=True)
        )  # (1, K, T, d)
        attended = self.attend(writer, query, key, value, geometry)  # (1, H, S, d)
        by_position = writer.node("Transpose", [attended], attributes={"perm": [0, 2, 1, 3]})  # (1, S, H, d)
        return writer.node("Reshape", [by_position, writer.integers("side_by_side", [0, 0, -1])])  # (1, S, Hd)

    def rotated(self, writer: Writer, heads: str) -> str:
        """Rotary positions: (1, H|K, S, d) -> the same."""
        return writer.node("RotaryEmbedding", [heads, *_angles(writer)])

    def attend(self, writer: Writer, query: str, key: str, value: str, geometry: Geometry) -> str:
        return writer.node("Attention", [query, key, value, "attention_mask"])

    def inputs(self, geometry: Geometry, rows: str | int) -> list[onnx.ValueInfoProto]:
        seen = self.cache_lengths()[1]
        write = [_info("write_indices", TensorProto.INT64, [rows])] if self.cache == "scatter" else []
        return [
            _info("position_ids", TensorProto.INT64, [rows, "steps"]),
            _info("attention_mask", TensorProto.BOOL, [rows, 1, "steps", seen]),
            *write,
        ]

    def cache_lengths(self) -> tuple[str | int, str | int]:
        return (self.positions, self.positions) if self.cache == "scatter" else ("past", "positions")

    def _appended(self, writer: Writer, past: str, new: str, present: str) -> str:
        """A layer's keys or values with this step's behind them: (1, K, past, d), (1, K, S, d) -> (1, K, T, d)."""
        if self.cache == "scatter":
            attributes: dict[str, Any] = {"axis": -2, "mode": "linear"}
            return writer.node("TensorScatter", [past, new, "write_indices"], outputs=[present], attributes=attributes)
        return writer.node("Concat", [past, new], outputs=[present], attributes={"axis": 2})


@dataclass(frozen=True)
class PrimitiveDialect(StandardDialect):
    """Opset 20: norm, rotation and attention spelled out, for TensorRT before 10.15 and other older engines."""

    opsets: tuple[tuple[str, int], ...] = (("", 20),)

    def norm(self, writer: Writer, x: str, norm: Block, name: str) -> str:
        # Squares of half precision overflow, so a norm is computed in single precision whatever surrounds it.
        wide = x if writer.floats == _FLOAT32 else writer.cast(x, _FLOAT32)
        square = writer.node("Mul", [wide, wide])
        mean = writer.node("ReduceMean", [square, writer.integers("last_axis", [-1])])
        size = writer.scalar(f"{name}.epsilon", epsilon(norm), _FLOAT32)
        root = writer.node("Sqrt", [writer.node("Add", [mean, size])])
        normed = writer.node("Div", [wide, root])
        if writer.floats != _FLOAT32:
            normed = writer.cast(normed, writer.floats)
        return writer.node("Mul", [normed, gain(writer, norm, name)])

    def rotated(self, writer: Writer, heads: str) -> str:
        return rotated_halves(writer, heads, head_axis=1)

    def attend(self, writer: Writer, query: str, key: str, value: str, geometry: Geometry) -> str:
        d = geometry.head_dim
        scaled = writer.node("Mul", [query, writer.scalar("attention_scale", 1 / math.sqrt(d))])
        sharing = geometry.num_heads // geometry.kv_heads
        grouped = writer.integers("grouped", [1, geometry.kv_heads, sharing, -1, d])
        by_group = writer.node("Reshape", [scaled, grouped])  # (1, K, H/K, S, d)
        over_group = writer.integers("over_group", [2])
        key, value = (writer.node("Unsqueeze", [x, over_group]) for x in (key, value))  # (1, K, 1, T, d)
        across = writer.node("Transpose", [key], attributes={"perm": [0, 1, 2, 4, 3]})
        scores = writer.node("MatMul", [by_group, across])  # (1, K, H/K, S, T)
        hidden = writer.scalar("hidden", float(np.finfo(writer.floats).min) / 2)
        mask = writer.node("Unsqueeze", ["attention_mask", over_group])  # (1, 1, 1, S, T)
        seen = writer.node("Where", [mask, scores, hidden])
        weights = writer.node("Softmax", [seen], attributes={"axis": -1})
        gathered = writer.node("MatMul", [weights, value])  # (1, K, H/K, S, d)
        return writer.node("Reshape", [gathered, writer.integers("by_query", [1, geometry.num_heads, -1, d])])


def _heads(writer: Writer, qkv: Sequence[str], geometry: Geometry) -> list[str]:
    """One packed (1, S, (H + 2K)d), or q, k, v apart -> q (1, H, S, d), k and v (1, K, S, d)."""
    if len(qkv) == 1:
        qkv = split_heads(writer, qkv[0], geometry)
    by_head = writer.integers("by_head", [0, 0, -1, geometry.head_dim])
    turn = {"perm": [0, 2, 1, 3]}
    return [writer.node("Transpose", [writer.node("Reshape", [x, by_head])], attributes=turn) for x in qkv]


def split_heads(writer: Writer, packed: str, geometry: Geometry) -> list[str]:
    """(1, S, (H + 2K)d) -> q (1, S, Hd), k and v (1, S, Kd)."""
    parts = [f"{packed}.{part}" for part in "qkv"]
    widths = writer.integers("qkv_widths", geometry.widths)
    writer.node("Split", [packed, widths], outputs=parts, attributes={"axis": -1})
    return parts


def rotated_halves(writer: Writer, heads: str, head_axis: int) -> str:
    """Rotary positions by primitive nodes: heads (1, H|K, S, d), or (1, S, H|K, d) by `head_axis` -> the same."""
    axis = writer.integers(f"head_axis_{head_axis}", [head_axis])
    cos, sin = (writer.node("Unsqueeze", [angle, axis]) for angle in _angles(writer))
    first, second = f"{heads}.first", f"{heads}.second"
    writer.node("Split", [heads], outputs=[first, second], attributes={"axis": -1, "num_outputs": 2})
    turned = [
        writer.node(op, [writer.node("Mul", [a, cos]), writer.node("Mul", [b, sin])])
        for op, a, b in (("Sub", first, second), ("Add", second, first))
    ]
    return writer.node("Concat", turned, attributes={"axis": -1})


def _fits_rotary(geometry: Geometry) -> bool:
    return geometry.head_dim % _ROTARY_BLOCK == 0


def _angles(writer: Writer) -> list[str]:
    """Cosines and sines of this step's positions, looked up once for all layers: (1, S, d / 2) each."""
    names = ["rotary.step_cos", "rotary.step_sin"]
    if names[0] not in writer.made:
        for name, table in zip(names, ("rotary.cos", "rotary.sin"), strict=True):
            writer.node("Gather", [table, "position_ids"], outputs=[name])
    return names
