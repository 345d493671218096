"""Faster kernels by name: what was asked for is what runs, or an error says why not."""

from __future__ import annotations

import importlib.util

import torch

from export.runtime.errors import MvlmError
from mvlm_core.modeling.model import MvlmForConditionalGeneration

from .config import TrainConfig


def use_kernels(model: MvlmForConditionalGeneration, config: TrainConfig) -> None:
    """Set the attention functions and, where asked for, Liger's kernels. Raises `MvlmError` where they do not apply."""
    wanted = {"attention.vision": config.attention.vision, "attention.text": config.attention.text}
    for key, name in wanted.items():
        if name in ("flash_attention_2", "flex_attention") and not torch.cuda.is_available():
            raise MvlmError(f"{key}: {name} runs on CUDA, and there is none here: choose sdpa")
    if config.attention.vision == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise MvlmError("attention.vision: flash_attention_2 needs flash-attn: pip install flash-attn, or choose sdpa")
    if model.config.vision_config.model_type != "resnet":  # convolutions attend to nothing
        model.vision_tower.set_attn_implementation(config.attention.vision)
    model.language_model.set_attn_implementation(config.attention.text)
    if config.liger:
        _use_liger(model)


def _use_liger(model: MvlmForConditionalGeneration) -> None:
    """Liger looks at the type of the model that it is given and passes over what it does not know (ecosystem.md, T9),
    so it is given the language model, and its silence is an error."""
    if not torch.cuda.is_available():
        raise MvlmError("liger: its kernels run on CUDA, and there is none here: leave it out")
    if importlib.util.find_spec("liger_kernel") is None:
        raise MvlmError("liger: liger-kernel is not installed: pip install liger-kernel, or leave it out")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = model.config.text_config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise MvlmError(f"liger: it has no kernels for {kind}: leave it out")
    # The loss is ours, over the supervised positions alone; Liger's fused one would want them all.
    MODEL_TYPE_TO_APPLY_LIGER_FN[kind](model=model.language_model, fused_linear_cross_entropy=False)
