"""Tiny towers and language models as they lie on the hub: whole folders, with the files that come with each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    PreTrainedTokenizerFast,
)

from mvlm_core.train.config import TrainConfig
from tests.support.tiny import ANSWERS, GRID_SIDE, QUESTIONS, SIZE_PX

_VIT = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIZE_PX,
    "patch_size": SIZE_PX // GRID_SIDE,
}  # fmt: skip
_TEXT_HALF = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
_CLIP = {**_VIT, "intermediate_size": 32, "initializer_range": 0.3}
# What transformers is told to write each; `siglip2` is the form of a fixed size, which is stored as a SigLIP.
TOWERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "clip": (AutoModel, {"model_type": "clip", "vision_config": _CLIP, "text_config": _TEXT_HALF}),
    "siglip": (AutoModel, {"model_type": "siglip_vision_model", **_VIT, "intermediate_size": 32}),
    "siglip2": (
        AutoModel,
        {"model_type": "siglip", "vision_config": {**_VIT, "intermediate_size": 32}, "text_config": _TEXT_HALF},
    ),
    "dinov2": (AutoModelForImageClassification, {"model_type": "dinov2", **_VIT, "initializer_range": 0.3}),
    "dinov2_with_registers": (AutoModel, {"model_type": "dinov2_with_registers", **_VIT, "initializer_range": 0.3}),
    "resnet": (AutoModelForImageClassification, {"model_type": "resnet", **_RESNET}),
}  # fmt: skip
PICTURES = {
    "clip": {"crop_size": SIZE_PX, "size": SIZE_PX, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]},
    "siglip2": {
        "size": {"height": SIZE_PX, "width": SIZE_PX}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
    },
    "dinov2": {
        "crop_size": {"height": SIZE_PX, "width": SIZE_PX}, "size": {"shortest_edge": 110}, "image_mean": [0.4] * 3,
        "image_std": [0.2] * 3, "resample": 3,
    },
}  # fmt: skip
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
# As Qwen's own: strings only, and no word of what training supervises.
STRINGS_ONLY = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The special tokens of each family, its end of a text, and its own template.
LANGUAGES: dict[str, tuple[str, list[str], str, str | None]] = {
    "llama3": (
        "llama", ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|end_of_text|>", None,
    ),
    "vicuna": ("llama", ["<unk>", "<s>", "</s>"], "</s>", None),
    "qwen2": ("qwen2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|endoftext|>", STRINGS_ONLY),
    "qwen3": ("qwen3", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", STRINGS_ONLY),
    "smollm2": ("llama", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", STRINGS_ONLY),
    "smollm3": ("smollm3", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", STRINGS_ONLY),
}  # fmt: skip


def write_tower(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    build, told = TOWERS[kind]
    model = build.from_config(AutoConfig.for_model(**told))
    for name, statistic in model.named_buffers():  # a tower that has learned: its statistics are its own
        if name.endswith("running_var"):
            statistic.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    if kind in PICTURES:
        (folder / "preprocessor_config.json").write_text(json.dumps(PICTURES[kind]))
    return folder


def write_language_model(folder: Path, kind: str) -> Path:
    torch.manual_seed(1)
    model_type, special, end, template = LANGUAGES[kind]
    tokenizer = language_tokenizer(special, end, template)
    config = AutoConfig.for_model(
        model_type, **TEXT, vocab_size=len(tokenizer), pad_token_id=None, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def language_tokenizer(special: list[str], end: str, template: str | None) -> PreTrainedTokenizerFast:
    """Byte pairs learned on the tests' words; as published ones, it knows no <image>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f" {text}\n" for text in (*QUESTIONS, *ANSWERS)], trainer)
    bos = next((token for token in special if token in ("<s>", "<|begin_of_text|>")), None)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, bos_token=bos, additional_special_tokens=special
    )
    fast.chat_template = template
    return fast


def told(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **model: Any) -> TrainConfig:
    """A run of one step, with the model that is told; the rest of it says nothing."""
    parts = {key: value for key, value in (("vision", vision), ("text", text)) if value}
    stage = {"name": "only", "loss": "answers", "steps": 1}
    return TrainConfig.model_validate({"scales": (1, 9, 144), "stages": [stage], "model": {**parts, **model}})
