"""The vision towers, and how the patches of each are found in what it leaves.

A tower is one line of `_LEADING`: how many positions stand before the patches. The sources are the models' own code in
transformers: CLIP and DINOv2 put a class token first, registers follow it, SigLIP has neither, a ResNet leaves a grid.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from export.runtime.errors import MvlmError

_LEADING = {
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "smolvlm_vision": 0,
    "idefics3_vision": 0,
    "internvl_vision": 1,
    "resnet": 0,
}  # fmt: skip
# Towers whose positions are resized to the pictures, so that the pictures and not the weights decide the grid.
_ANY_SIZE = ("dinov2", "dinov2_with_registers", "resnet")
# The convolution and the pooling that every ResNet begins with halve the picture twice.
_RESNET_STEM_HALVINGS = 2


def require_tower(config: PreTrainedConfig, name: str) -> None:
    """Raise `MvlmError` unless the configuration is that of a tower that is read here."""
    if config.model_type == "siglip2_vision_model":
        raise MvlmError(
            f"{name} is SigLIP 2 in its NaFlex form, which takes patches and not pictures: name a checkpoint of a fixed"
            " size (such as google/siglip2-base-patch16-384), whose tower is a siglip_vision_model"
        )
    if config.model_type not in _LEADING:
        raise MvlmError(
            f"{name} is a {config.model_type}, and the vision towers that are read are {', '.join(_LEADING)}"
        )


def leading_tokens(config: PreTrainedConfig) -> int:
    """How many positions of a tower's output stand before its patches."""
    return _LEADING[config.model_type] + getattr(config, "num_register_tokens", 0)


def vision_width(config: PreTrainedConfig) -> int:
    """The channels of a tower's features."""
    return config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size


def tower_size_px(config: PreTrainedConfig) -> int | None:
    """The side of the pictures that a tower was made for; None for a ResNet, which takes any.

    Raises `MvlmError` for pictures or patches that are not square.
    """
    if config.model_type == "resnet":
        return None
    sides = [_side(config.image_size), _side(config.patch_size)]
    if None in sides:
        raise MvlmError("the vision tower's pictures or patches are not square, and only such are read here")
    return sides[0]


def _side(size: Any) -> int | None:
    """The side that 448 and (448, 448) name; None for what is not square."""
    sides = {size} if isinstance(size, int) else set(size)
    return int(sides.pop()) if len(sides) == 1 else None


def tower_grid_side(config: PreTrainedConfig, size_px: int) -> int:
    """Patches along a side of a picture of `size_px`. Raises `MvlmError` for a picture that the tower does not take."""
    if config.model_type == "resnet":
        later_stages = len(config.hidden_sizes) - 1 + bool(config.downsample_in_first_stage)
        side = size_px
        for _ in range(_RESNET_STEM_HALVINGS + later_stages):
            side = -(-side // 2)
        return side
    made_for = tower_size_px(config)
    if size_px != made_for and config.model_type not in _ANY_SIZE:
        raise MvlmError(f"image.size_px is {size_px}, and the vision tower takes pictures of {made_for} pixels only")
    return size_px // (_side(config.patch_size) or 1)


def require_layer(config: PreTrainedConfig, layer: int) -> None:
    """Raise `MvlmError` unless the tower has the hidden state `layer`, with the patches of its last one."""
    states = 1 if config.model_type == "resnet" else config.num_hidden_layers + 1
    if layer != -1 and not (states > 1 and -states <= layer < states):
        allowed = f"it has those from {-states} to {states - 1}" if states > 1 else "of a ResNet only -1 is read"
        raise MvlmError(f"vision_feature_layer is {layer}, and the tower has no such hidden state: {allowed}")


def patch_features(features: Tensor, grid_side: int, leading: int) -> Tensor:
    """A tower's output as patches: (B, D_vision, G, G) or (B, leading + P, D_vision) -> (B, P, D_vision)."""
    if features.ndim == 4:  # a convolutional tower: its last grid counts
        features = features.flatten(2).transpose(1, 2)
    features = features[:, leading:]
    if features.shape[1] != grid_side**2:
        raise MvlmError(
            f"the tower leaves {features.shape[1]} patches, and the configuration says a grid of {grid_side} x"
            f" {grid_side}: set grid_side to the tower's"
        )
    return features
