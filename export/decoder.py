"""The language model, written node by node: Llama and Qwen3.

Letters: S positions of this step, D width, H query heads, K key-value heads, d head size, V vocabulary.
A prompt and a single token are the same graph; nothing is traced, so no length is baked in. Which nodes stand for a
norm, an attention and an activation is the business of a dialect; the writer calls it and knows no node by name
except those that every dialect shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from export.runtime.errors import MvlmError
from export.runtime.manifest import DecoderGraph, Graph

FAMILIES = ("llama", "qwen3")
# A module of transformers; torch types what hangs on a module as tensor or module, whatever it is.
Block = Any
StoreTensor = Callable[[str, NDArray[Any]], TensorProto]
# onnxruntime's rotation works on blocks of this many channels.
_ROTARY_BLOCK = 16


@dataclass(frozen=True)
class Geometry:
    """What a dialect must know of the language model."""

    num_heads: int
    kv_heads: int
    head_dim: int


class Writer:
    """Collects nodes and initializers; `store` makes an initializer of an array."""

    def __init__(self, store: StoreTensor) -> None:
        self._store = store
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}

    def node(
        self, op: str, inputs: Sequence[str], *, outputs: Sequence[str] | None = None,
        domain: str = "", attributes: dict[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """Add a node and return the name of its first output."""
        names = list(outputs) if outputs else [f"{op}_{len(self.nodes)}"]
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, domain=domain, **(attributes or {})))
        return names[0]

    def weight(self, name: str, values: Tensor) -> str:
        """A tensor of the model, float32, under its name there."""
        if name not in self.initializers:
            self.initializers[name] = self._store(name, values.detach().float().cpu().contiguous().numpy())
        return name

    def integers(self, name: str, values: Sequence[int] | int) -> str:
        """Shapes and indices: small, and kept in the graph itself."""
        if name not in self.initializers:
            self.initializers[name] = onnx.numpy_helper.from_array(np.asarray(values, np.int64), name)
        return name

    def linear(self, x: str, layers: Sequence[Block], name: str) -> str:
        """Linear layers that read the same input as one product, side by side: (…, D) -> (…, sum of widths)."""
        weight = torch.cat([layer.weight for layer in layers]).T  # (D, sum of widths)
        y = self.node("MatMul", [x, self.weight(f"{name}.weight", weight)])
        if layers[0].bias is None:
            return y
        return self.node("Add", [y, self.weight(f"{name}.bias", torch.cat([layer.bias for layer in layers]))])


class Dialect(Protocol):
    """The nodes that runtimes differ in."""

    opsets: tuple[tuple[str, int], ...]

    def norm(self, writer: Writer, x: str, norm: Block, name: str) -> str:
        """RMS norm over the last axis."""

    def add_norm(self, writer: Writer, x: str, residual: str, norm: Block, name: str) -> tuple[str, str]:
        """The norm of a sum, and the sum."""

    def silu(self, writer: Writer, x: str) -> str: ...

    def attention(self, writer: Writer, qkv: Sequence[str], layer: int, geometry: Geometry) -> str:
        """Rotate, append to the cache, attend: one packed (1, S, (H + 2K)d), or q, k, v apart -> (1, S, Hd)."""

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """What a step needs besides embeddings and cache."""


class OnnxruntimeDialect:
    """Fused nodes of onnxruntime; its GroupQueryAttention appends to the cache in place (past is present)."""

    opsets: tuple[tuple[str, int], ...] = (("", 21), ("com.microsoft", 1))

    def norm(self, writer: Writer, x: str, norm: Block, name: str) -> str:
        attributes = {"epsilon": _epsilon(norm), "axis": -1}
        return writer.node("SimplifiedLayerNormalization", [x, _gain(writer, norm, name)], attributes=attributes)

    def add_norm(self, writer: Writer, x: str, residual: str, norm: Block, name: str) -> tuple[str, str]:
        normed, total = f"{name}.normed", f"{name}.sum"
        writer.node(
            "SkipSimplifiedLayerNormalization", [x, residual, _gain(writer, norm, name)],
            outputs=[normed, "", "", total], domain="com.microsoft", attributes={"epsilon": _epsilon(norm)},
        )  # fmt: skip
        return normed, total

    def silu(self, writer: Writer, x: str) -> str:
        return writer.node("QuickGelu", [x], domain="com.microsoft", attributes={"alpha": 1.0})

    def attention(self, writer: Writer, qkv: Sequence[str], layer: int, geometry: Geometry) -> str:
        past, present = _cache_names(layer)
        padded = [*qkv, "", ""][:3]  # one packed input stands in the place of the queries
        return writer.node(
            "GroupQueryAttention", [*padded, *past, "seqlens_k", "total_sequence_length", "rotary.cos", "rotary.sin"],
            outputs=[f"layers.{layer}.attended", *present], domain="com.microsoft",
            attributes={"num_heads": geometry.num_heads, "kv_num_heads": geometry.kv_heads, "do_rotary": 1},
        )  # fmt: skip

    def inputs(self) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
        ]


def write_decoder(
    model: PreTrainedModel, store: StoreTensor, dialect: Dialect, file: str
) -> tuple[onnx.ModelProto, DecoderGraph]:
    """The graph of a language model and what a runtime must know of it: embeddings (1, S, D) -> logits (1, V).

    Raises `MvlmError` naming everything about the model that the writer does not know.
    """
    config: PreTrainedConfig = model.config
    require_supported(config)
    geometry = Geometry(config.num_attention_heads, config.num_key_value_heads, _head_dim(config))
    writer = Writer(store)
    _rotary_tables(writer, model, config.max_position_embeddings)
    logits = _body(writer, dialect, model, geometry)
    by_layer = [_cache_names(layer) for layer in range(config.num_hidden_layers)]
    past, present = ([name for names in by_layer for name in names[side]] for side in (0, 1))
    floats = TensorProto.FLOAT
    cache_shape: list[str | int] = [1, geometry.kv_heads, "positions", geometry.head_dim]
    info = helper.make_tensor_value_info
    inputs = [
        info("inputs_embeds", floats, [1, "steps", config.hidden_size]),
        *dialect.inputs(),
        *(info(name, floats, cache_shape) for name in past),
    ]
    outputs = [info(logits, floats, [1, config.vocab_size]), *(info(name, floats, cache_shape) for name in present)]
    graph = helper.make_graph(writer.nodes, "decoder", inputs, outputs, list(writer.initializers.values()))
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*opset) for opset in dialect.opsets], ir_version=10,
        producer_name="mvlm",
    )  # fmt: skip
    names = ["inputs_embeds", *(value.name for value in dialect.inputs())]
    facts = Graph(file, {name: name for name in names}, {"logits": logits})
    return proto, DecoderGraph(facts, tuple(past), tuple(present), geometry.kv_heads, geometry.head_dim)


def _body(writer: Writer, dialect: Dialect, model: PreTrainedModel, geometry: Geometry) -> str:
    layers, final = model.model.layers, model.model.norm
    residual = "inputs_embeds"  # (1, S, D)
    x = dialect.norm(writer, residual, layers[0].input_layernorm, "layers.0.input_layernorm")
    for i, layer in enumerate(layers):
        name = f"layers.{i}"
        x = _attention(writer, dialect, layer.self_attn, x, i, geometry)
        after = f"{name}.post_attention_layernorm"
        x, residual = dialect.add_norm(writer, x, residual, layer.post_attention_layernorm, after)
        x = _mlp(writer, dialect, layer.mlp, x, f"{name}.mlp")
        if i + 1 < len(layers):
            following = f"layers.{i + 1}.input_layernorm"
            x, residual = dialect.add_norm(writer, x, residual, layers[i + 1].input_layernorm, following)
    # Only the last position is asked for, so only it is normalised and meets the head.
    last = writer.integers("last_position", -1)
    x, residual = (writer.node("Gather", [y, last], attributes={"axis": 1}) for y in (x, residual))  # (1, D)
    x = dialect.norm(writer, writer.node("Add", [x, residual]), final, "norm")
    # As transB reads (V, D), a head that is tied to the embedding table shares its bytes.
    head = [x, writer.weight("lm_head.weight", model.lm_head.weight)]
    return writer.node("Gemm", head, outputs=["logits"], attributes={"transB": 1})  # (1, V)


def _attention(writer: Writer, dialect: Dialect, module: Block, x: str, layer: int, geometry: Geometry) -> str:
    name = f"layers.{layer}.self_attn"
    packed = writer.linear(x, [module.q_proj, module.k_proj, module.v_proj], f"{name}.qkv_proj")
    qkv = [packed]
    if hasattr(module, "q_norm"):
        qkv = _normed_heads(writer, dialect, module, packed, name, geometry)
    attended = dialect.attention(writer, qkv, layer, geometry)  # (1, S, Hd)
    return writer.linear(attended, [module.o_proj], f"{name}.o_proj")


def _normed_heads(
    writer: Writer, dialect: Dialect, module: Block, packed: str, name: str, geometry: Geometry
) -> list[str]:
    """Qwen3 normalises each head's queries and keys before they are rotated: (1, S, (H + 2K)d) -> q, k, v."""
    d = geometry.head_dim
    widths = [geometry.num_heads * d, geometry.kv_heads * d, geometry.kv_heads * d]
    parts = [f"{name}.{part}" for part in "qkv"]
    writer.node("Split", [packed, writer.integers("qkv_widths", widths)], outputs=parts, attributes={"axis": -1})
    by_head = writer.integers("by_head", [0, 0, -1, d])
    side_by_side = writer.integers("side_by_side", [0, 0, -1])
    for i, norm in enumerate([module.q_norm, module.k_norm]):
        heads = writer.node("Reshape", [parts[i], by_head])  # (1, S, H|K, d)
        normed = dialect.norm(writer, heads, norm, f"{parts[i]}_norm")
        parts[i] = writer.node("Reshape", [normed, side_by_side])  # (1, S, Hd|Kd)
    return parts


def _mlp(writer: Writer, dialect: Dialect, module: Block, x: str, name: str) -> str:
    gate = dialect.silu(writer, writer.linear(x, [module.gate_proj], f"{name}.gate_proj"))
    up = writer.linear(x, [module.up_proj], f"{name}.up_proj")
    return writer.linear(writer.node("Mul", [gate, up]), [module.down_proj], f"{name}.down_proj")


@torch.no_grad()
def _rotary_tables(writer: Writer, model: PreTrainedModel, length: int) -> None:
    """Cosines and sines of every position, as the model itself computes them: (length, d / 2) each."""
    positions = torch.arange(length)[None]
    halves = [table[0, :, : table.shape[-1] // 2] for table in model.model.rotary_emb(torch.zeros(1), positions)]
    for name, table in zip(("rotary.cos", "rotary.sin"), halves, strict=True):
        writer.weight(name, table)


def require_supported(config: PreTrainedConfig) -> None:
    """Raise `MvlmError` naming everything in a language model's configuration that the writer does not know."""
    rope = getattr(config, "rope_parameters", None) or {}
    wrong = []
    if config.model_type not in FAMILIES:
        wrong.append(f"the architecture {config.model_type}")
    if config.hidden_act != "silu":
        wrong.append(f"the activation {config.hidden_act}")
    if rope.get("rope_type", "default") != "default":
        wrong.append(f"rope_type {rope['rope_type']}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        wrong.append(f"partial_rotary_factor {rope['partial_rotary_factor']}")
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        wrong.append("sliding_attention")
    if _head_dim(config) % _ROTARY_BLOCK:
        wrong.append(f"head_dim {_head_dim(config)}, which is no multiple of {_ROTARY_BLOCK}")
    if wrong:
        raise MvlmError(
            f"this language model cannot be exported: {', '.join(wrong)} is not supported"
            f" (what is: {' and '.join(FAMILIES)}, silu, plain rotary positions, full attention)"
        )


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _epsilon(norm: Block) -> float:
    return float(norm.variance_epsilon)


def _gain(writer: Writer, norm: Block, name: str) -> str:
    return writer.weight(f"{name}.weight", norm.weight)


def _cache_names(layer: int) -> tuple[list[str], list[str]]:
    """What a layer reads, and what it writes: keys and values."""
    past, present = ([f"{time}.{layer}.{what}" for what in ("key", "value")] for time in ("past", "present"))
    return past, present
