"""What encoding a tile is worth in tokens: the tower's share of a scale's cost, before any device has measured it.

Multiplications are counted, not seconds: they are the same on every machine, so that labels are too.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from mvlm_core.modeling.model import MvlmForConditionalGeneration

# Behind so many positions a token attends to as many as a prompt with a picture has, more or less.
_POSITIONS = 64


@torch.no_grad()
def tile_tokens(model: MvlmForConditionalGeneration, size_px: int) -> float:
    """The multiplications of tower and projector for one view of that side, over those of the language model for one
    position."""
    pixels = torch.zeros(1, 3, size_px, size_px, device=model.device, dtype=model.dtype)
    embeds = torch.zeros(1, _POSITIONS, model.config.text_config.hidden_size, device=model.device, dtype=model.dtype)
    with FlopCounterMode(display=False) as view:
        model.connector.words(model.encode_images(pixels))
    with FlopCounterMode(display=False) as positions:
        model.language_model.base_model(inputs_embeds=embeds, use_cache=False)
    return view.get_total_flops() / (positions.get_total_flops() / _POSITIONS)
