"""Low-rank adapters through peft: put on for a stage, folded into the weights behind it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig

from export.runtime.errors import MvlmError
from mvlm_core.modeling.model import MvlmForConditionalGeneration

from .stages import LoraConfig, Part


def add_lora(
    model: MvlmForConditionalGeneration, lora: LoraConfig, *, frozen: Sequence[Part], base: Path, seed: int
) -> PeftModel:
    """Adapters on every linear layer of the language model; tower and connector learn in full unless they are frozen.

    With `four_bit` the model is written to `base`, and read back with its language model in NF4. Raises `MvlmError`
    where bitsandbytes is not installed.
    """
    targets = [
        f"language_model.{name}"
        for name, module in model.language_model.base_model.named_modules(prefix=_inner_name(model))
        if isinstance(module, nn.Linear)
    ]
    if lora.four_bit:
        model = _in_four_bits(model, base)
    whole = [part for part in ("vision_tower", "connector") if part not in frozen]
    torch.manual_seed(seed)  # the adapters' start, whatever was drawn before
    return get_peft_model(
        model,
        PeftLoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
            target_modules=targets, modules_to_save=whole or None,
        ),
    )  # fmt: skip


def _inner_name(model: MvlmForConditionalGeneration) -> str:
    return model.language_model.base_model_prefix


def require_bitsandbytes() -> None:
    """Raise `MvlmError` where four bits cannot be had."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MvlmError('lora.four_bit: bitsandbytes is not installed: pip install "mvlm[qlora]", or leave it out')


def _in_four_bits(model: MvlmForConditionalGeneration, base: Path) -> MvlmForConditionalGeneration:
    require_bitsandbytes()
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            model.save_pretrained(base)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["vision_tower", "connector", "lm_head"],
    )  # fmt: skip
    quantized = MvlmForConditionalGeneration.from_pretrained(
        base, quantization_config=four_bits, dtype=torch.float32, local_files_only=True
    )
    return prepare_model_for_kbit_training(quantized, use_gradient_checkpointing=False)


def merge_lora(adapted: PeftModel, lora: LoraConfig, *, base: Path, adapter: Path) -> MvlmForConditionalGeneration:
    """Write the adapter, the parts that learned in full among it, and return the model with all of it folded in.

    What was held in four bits is folded into the weights as they were before.
    """
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            adapted.save_pretrained(str(adapter))
    if lora.four_bit:
        model = MvlmForConditionalGeneration.from_pretrained(base, dtype=torch.float32, local_files_only=True)
        adapted = PeftModel.from_pretrained(model, adapter)
    return adapted.merge_and_unload()
