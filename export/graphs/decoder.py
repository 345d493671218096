"""The language model, written node by node: Llama, SmolLM, Qwen2 and Qwen3.

Letters: S positions of this step, D width, H query heads, K key-value heads, d head size, V vocabulary.
A prompt and a single token are the same graph; nothing is traced, so no length is baked in. Which nodes stand for a
norm, an attention and an activation is the business of a dialect, and how a linear layer multiplies that of a
product; the writer knows no node by name except those that every engine shares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from transformers import PreTrainedConfig, PreTrainedModel

from export.runtime.errors import MvlmError
from export.runtime.manifest import DecoderGraph, Graph

from .dialects import Dialect, split_heads
from .writer import Block, Geometry, Product, StoreTensor, Writer, cache_names

# SmolLM and SmolLM2 call themselves Llama; SmolLM3 has layers that do not rotate.
FAMILIES = ("llama", "smollm3", "qwen2", "qwen3")
# onnxruntime's attention reads heads in blocks of this many channels.
_HEAD_BLOCK = 8
_FLOAT32 = np.dtype(np.float32)


def write_decoder(
    model: PreTrainedModel, store: StoreTensor, dialect: Dialect, file: str, *,
    product: Product, floats: np.dtype[Any] = _FLOAT32, positions: int,
) -> tuple[onnx.ModelProto, DecoderGraph]:  # fmt: skip
    """The graph of a language model and what a runtime must know of it: embeddings (B, S, D) -> logits (B, V).

    Embeddings and logits are float32 whatever the graph computes in (`floats`), the cache is not. `positions` is how
    many a conversation may hold. Raises `MvlmError` naming everything about the model that the writer does not know.
    """
    config: PreTrainedConfig = model.config
    require_supported(config)
    geometry = Geometry(config.num_attention_heads, config.num_key_value_heads, _head_dim(config))
    writer = Writer(store, product, floats)
    _rotary_tables(writer, model, positions)
    logits = _body(writer, dialect, model, geometry)
    # Several conversations are read on at once only where none can change what another gives.
    rows = dialect.rows if product.by_row else 1
    by_layer = [cache_names(layer) for layer in range(config.num_hidden_layers)]
    past, present = ([name for names in by_layer for name in names[side]] for side in (0, 1))
    info, lengths = helper.make_tensor_value_info, dialect.cache_lengths()
    caches = [
        [info(name, writer.float_type, [rows, geometry.kv_heads, length, geometry.head_dim]) for name in names]
        for names, length in zip((past, present), lengths, strict=True)
    ]
    embeds = info("inputs_embeds", TensorProto.FLOAT, [rows, "steps", config.hidden_size])
    others = dialect.inputs(geometry, rows)
    inputs = [embeds, *others, *caches[0]]
    outputs = [info(logits, TensorProto.FLOAT, [rows, config.vocab_size]), *caches[1]]
    graph = helper.make_graph(writer.nodes, "decoder", inputs, outputs, list(writer.initializers.values()))
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*opset) for opset in dialect.opsets],
        ir_version=helper.find_min_ir_version_for([helper.make_opsetid(*dialect.opsets[0])]), producer_name="mvlm",
    )  # fmt: skip
    names = ["inputs_embeds", *(value.name for value in others)]
    facts = Graph(file, {name: name for name in names}, {"logits": logits})
    return proto, DecoderGraph(
        facts, tuple(past), tuple(present), geometry.kv_heads, geometry.head_dim,
        cache=dialect.cache, cache_dtype=floats.name, positions=positions,
    )  # fmt: skip


def _body(writer: Writer, dialect: Dialect, model: PreTrainedModel, geometry: Geometry) -> str:
    layers, final = model.model.layers, model.model.norm
    residual = "inputs_embeds"  # (1, S, D)
    if writer.floats != _FLOAT32:
        residual = writer.cast(residual, writer.floats)
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
    logits = writer.product.head(writer, x, model.lm_head.weight, "lm_head.weight")  # (1, V)
    # In single precision also from a graph of half precision: a sampler adds up a whole vocabulary.
    return writer.node("Cast", [logits], outputs=["logits"], attributes={"to": TensorProto.FLOAT})


def _attention(writer: Writer, dialect: Dialect, module: Block, x: str, layer: int, geometry: Geometry) -> str:
    name = f"layers.{layer}.self_attn"
    packed = writer.linear(x, [module.q_proj, module.k_proj, module.v_proj], f"{name}.qkv_proj")
    qkv = [packed]
    if hasattr(module, "q_norm"):
        qkv = _normed_heads(writer, dialect, module, packed, name, geometry)
    rotate = bool(getattr(module, "use_rope", True))
    attended = dialect.attention(writer, qkv, layer, geometry, rotate=rotate)  # (1, S, Hd)
    return writer.linear(attended, [module.o_proj], f"{name}.o_proj")


def _normed_heads(
    writer: Writer, dialect: Dialect, module: Block, packed: str, name: str, geometry: Geometry
) -> list[str]:
    """Qwen3 normalises each head's queries and keys before they are rotated: (1, S, (H + 2K)d) -> q, k, v."""
    parts = split_heads(writer, packed, geometry)
    by_head = writer.integers("by_head", [0, 0, -1, geometry.head_dim])
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
    if _head_dim(config) % _HEAD_BLOCK:
        wrong.append(f"head_dim {_head_dim(config)}, which is no multiple of {_HEAD_BLOCK}")
    if wrong:
        raise MvlmError(
            f"this language model cannot be exported: {', '.join(wrong)} is not supported"
            f" (what is: {', '.join(FAMILIES)}, silu, plain rotary positions, full attention; where one is added:"
            " docs/language-models.md)"
        )


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
