"""Tiny random models and drawn pictures, which the tests use too: nothing here is trained, and nothing is fetched."""

from __future__ import annotations

from typing import Literal

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    ResNetConfig,
)

from export.runtime.families import Family
from mvlm_core.backbones.byte_tokenizer import train_tokenizer
from mvlm_core.modeling.model import MvlmConfig, MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmImageProcessor, MvlmProcessor

GRID_SIDE = 12
SIZE_PX = 96
QUESTIONS = ("what colour is the star?", "how many dots are there?", "is it day or night?", "what number is printed?")
ANSWERS = ("red", "blue", "day", "47", "3")


def tiny_processor() -> MvlmProcessor:
    tokenizer = train_tokenizer([*QUESTIONS, *ANSWERS])
    return MvlmProcessor(MvlmImageProcessor(size_px=SIZE_PX), tokenizer)


def tiny_model(
    connector: Family = "pool",
    *,
    tower: Literal["resnet", "clip"] = "resnet",
    language: Literal["qwen3", "llama"] = "qwen3",
    processor: MvlmProcessor | None = None,
    seed: int = 0,
) -> MvlmForConditionalGeneration:
    """A model of a few thousand weights whose logits are far from flat, so that a wrong graph shows."""
    torch.manual_seed(seed)
    processor = processor or tiny_processor()
    tokenizer = processor.tokenizer
    config = MvlmConfig(
        vision_config=_towers()[tower],
        text_config=_language_models(len(tokenizer), tokenizer)[language],
        connector=connector,
        grid_side=GRID_SIDE,
        image_token_id=processor.image_token_id,
        connector_positions=tower == "resnet",
        num_queries=GRID_SIDE**2,
        num_heads=2,
        value_mlp=True,
        query_start="pyramid",
        vision_feature_layer=-2 if tower == "clip" else -1,
    )
    model = MvlmForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _towers() -> dict[str, PreTrainedConfig]:
    return {
        "resnet": ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", downsample_in_first_stage=False
        ),
        "clip": CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            image_size=SIZE_PX, patch_size=SIZE_PX // GRID_SIDE,
        ),
    }  # fmt: skip


def _language_models(vocabulary: int, tokenizer: PreTrainedTokenizerFast) -> dict[str, PreTrainedConfig]:
    shared = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
        "max_position_embeddings": 512, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    return {
        "qwen3": Qwen3Config(**shared, tie_word_embeddings=True),
        "llama": LlamaConfig(**shared, tie_word_embeddings=False),
    }


def byte_words() -> PreTrainedTokenizerFast:
    """As Vicuna's: <unk>, <s> and </s>, no <image>, and no token to pad with; here every byte is a token."""
    words = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def drawn_picture(seed: int = 0, size_px: int = SIZE_PX) -> Image.Image:
    """A background and a few shapes, different for each seed."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 256, (30,), generator=generator).tolist()
    picture = Image.new("RGB", (size_px, size_px), tuple(numbers[:3]))
    pen = ImageDraw.Draw(picture)
    for i in range(3, 27, 6):
        x, y = (n * size_px // 320 for n in numbers[i : i + 2])
        pen.ellipse([x, y, x + size_px // 5, y + size_px // 5], fill=tuple(numbers[i + 2 : i + 5]))
    return picture
