"""FLOPs of tower, connector and decoder, counted from their configurations.

A multiply and an add are two. Only products count (convolutions, linear layers, attention), as in torch's own counter,
against which a test holds every formula; a mask saves nothing, as there. Letters: P patches, m visual tokens, S
positions of the prompt, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Flops:
    """Of one picture and one question, read once: the prefill."""

    tower: float
    connector: float
    decoder: float

    @property
    def total(self) -> float:
        return self.tower + self.connector + self.decoder


def prefill_flops(config: Any, size_px: int, num_visual_tokens: int, text_tokens: int) -> Flops:
    """Of a model's configuration (`MvlmConfig`). Logits are taken at the last position alone."""
    towers = {"resnet": resnet_flops, "clip_vision_model": clip_flops}
    return Flops(
        towers[config.vision_config.model_type](config.vision_config, size_px),
        connector_flops(config, num_visual_tokens),
        decoder_flops(config.text_config, num_visual_tokens + text_tokens),
    )


def training_flops(
    config: Any, size_px: int, scales: Sequence[int], *, text_tokens: int, answer_tokens: int, frozen_tower: bool
) -> float:
    """Of one picture in one step, at every one of `scales`, with all of its questions behind it.

    A backward pass costs two forward ones. The tower reads the picture once, and a frozen one needs no backward pass.
    """
    tower = prefill_flops(config, size_px, scales[0], 0).tower * (1 if frozen_tower else 3)
    seen = sum(
        connector_flops(config, m) + decoder_flops(config.text_config, m + text_tokens, logits=answer_tokens)
        for m in scales
    )
    return tower + 3 * seen


def resnet_flops(config: PreTrainedConfig, size_px: int) -> float:
    """transformers' ResNet of basic blocks: a stem of 7 x 7, and two 3 x 3 convolutions a block."""
    told: Any = config
    side = _halved(size_px)
    total = _conv(told.num_channels, told.embedding_size, 7, side)
    side, width = _halved(side), told.embedding_size  # max pooling
    for stage, (wider, depth) in enumerate(zip(told.hidden_sizes, told.depths, strict=True)):
        for block in range(depth):
            halves = block == 0 and (stage > 0 or told.downsample_in_first_stage)
            side = _halved(side) if halves else side
            total += _conv(width, wider, 3, side) + _conv(wider, wider, 3, side)
            total += _conv(width, wider, 1, side) if width != wider or halves else 0  # the way round
            width = wider
    return total


def clip_flops(config: PreTrainedConfig, size_px: int) -> float:
    """A vision transformer with a class token, all of its layers."""
    told: Any = config
    patches = (size_px // told.patch_size) ** 2
    width, wide, seq = told.hidden_size, told.intermediate_size, patches + 1
    layer = _linear(seq, width, width) * 4 + _attention(seq, seq, width) + _linear(seq, width, wide) * 2
    return 2.0 * patches * told.num_channels * told.patch_size**2 * width + told.num_hidden_layers * layer


def connector_flops(config: Any, num_visual_tokens: int) -> float:
    """The MLP on every patch, whatever the scale; of a query connector its attention and its way out as well."""
    patches, m = config.grid_side**2, num_visual_tokens
    seen, width = _vision_width(config.vision_config), config.text_config.hidden_size
    if config.connector != "query":
        mixing = 2.0 * m * patches * width if config.connector == "nested_pool" else 0.0
        return _linear(patches, seen, width) + _linear(patches, width, width) + mixing
    values = _linear(patches, seen, seen) * (2 if config.value_mlp else 1)
    attention = _linear(m, seen, seen) + _linear(patches, seen, seen) + _attention(m, patches, seen)
    return values + attention + _linear(m, seen, seen) + _linear(m, seen, width)


def decoder_flops(config: PreTrainedConfig, positions: int, *, logits: int = 1) -> float:
    """A Llama-like language model over S positions, of which `logits` go through the head."""
    told: Any = config
    width, wide = told.hidden_size, told.intermediate_size
    size = getattr(told, "head_dim", None) or width // told.num_attention_heads
    heads, shared = told.num_attention_heads * size, told.num_key_value_heads * size
    layer = (
        _linear(positions, width, heads) * 2
        + _linear(positions, width, shared) * 2
        + _attention(positions, positions, heads)
        + _linear(positions, width, wide) * 3
    )
    return told.num_hidden_layers * layer + _linear(logits, width, told.vocab_size)


def _vision_width(config: Any) -> int:
    return config.hidden_sizes[-1] if config.model_type == "resnet" else config.hidden_size


def _linear(rows: int, inner: int, outer: int) -> float:
    return 2.0 * rows * inner * outer


def _attention(queries: int, keys: int, width: int) -> float:
    """Scores and the weighted sum, all heads together."""
    return 2 * 2.0 * queries * keys * width


def _conv(inner: int, outer: int, kernel: int, side: int) -> float:
    return 2.0 * inner * outer * kernel**2 * side**2


def _halved(side: int) -> int:
    """A stride of two, padded by half the kernel."""
    return (side + 1) // 2
