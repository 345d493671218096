"""The arithmetic that a packed step needs, counted from the model: what a share of the matrix peak is taken of.

Multiplications and additions of matrix products, forward and backward (twice the forward's). What a step computes
beyond that, as hidden pairs of a dense mask, is not needed, and not counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.gpu.record import seconds_of
from benchmarks.train.step import Step
from mvlm_core.modeling.losses import IGNORED_LABEL
from mvlm_core.train.packing import PADDING, block_mask

_FORWARD_AND_BACKWARD = 3
_IN_BOTH_PRODUCTS = 4  # of queries with keys, and of the weights with values: a multiplication and an addition each


def needed_flops(step: Step) -> float:
    """Of one forward and backward pass of the packed step."""
    model, batch = step.model, step.batch
    pictures = len(batch["pixel_values"])
    patches = pictures * model.config.grid_side**2
    tokens = int((batch["segments"] != PADDING).sum())
    supervised = int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
    vision: Any = model.config.vision_config
    text: Any = model.config.text_config
    in_a_view = model.config.grid_side**2 + 1  # with the class token
    products = (
        2 * _weights(model.vision_tower) * pictures * in_a_view
        + 2 * _weights(model.connector) * patches
        + 2 * _weights(model.language_model.base_model) * tokens
        + 2 * text.hidden_size * text.vocab_size * supervised
    )
    attention = _IN_BOTH_PRODUCTS * (
        pictures * in_a_view**2 * vision.hidden_size * vision.num_hidden_layers
        + seen_pairs(step) * text.num_attention_heads * text.head_dim * text.num_hidden_layers
    )
    to_patches = 2 * _weights(model.vision_tower, nn.Conv2d) * patches  # the picture itself needs no gradient
    return float(_FORWARD_AND_BACKWARD * (products + attention) + 2 * to_patches)


def seen_pairs(step: Step) -> int:
    """How many pairs of positions see each other, counted as the mask shows them."""
    pairs = 0
    for segments, blocks in zip(step.batch["segments"], step.batch["blocks"], strict=True):  # each (S,)
        seen = block_mask(segments[None], blocks[None])[0, 0]  # (S, S)
        pairs += int(seen[segments != PADDING].sum())
    return pairs


def _weights(module: nn.Module, kind: type[nn.Module] = nn.Linear) -> int:
    """Weights of the layers of a kind, each of which every position goes through."""
    return sum(layer.get_parameter("weight").numel() for layer in module.modules() if isinstance(layer, kind))


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of one large copy on the device."""
    source = torch.empty(2**30 if torch.cuda.is_available() else 2**24, dtype=torch.uint8)
    source = source.to("cuda" if torch.cuda.is_available() else "cpu")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds_of(lambda: target.copy_(source), rounds=5)
