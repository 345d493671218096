"""Tiny random models and drawn pictures, shared by the tests: nothing here is trained, and nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageDraw
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig, Qwen3Config, ResNetConfig

from export.runtime.families import Family
from mvlm_core.backbones.byte_tokenizer import train_tokenizer
from mvlm_core.data.pictures import PictureFile
from mvlm_core.data.row import PicturePlace, Row, Turn
from mvlm_core.modeling.model import MvlmConfig, MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmImageProcessor, MvlmProcessor

GRID_SIDE = 12
SIZE_PX = 96
SCALES = (1, 4, 9, 36, 144)
QUESTIONS = ("what colour is the star?", "how many dots are there?", "is it day or night?", "what number is printed?")
ANSWERS = ("red", "blue", "day", "47", "3")

# Overrides that make the drawn benchmark's recipe one of a few seconds.
SMALL_MODEL = (
    "model.vision.embedding_size=8", "model.vision.hidden_sizes=[8, 16]", "model.vision.depths=[1, 1]",
    "model.text.hidden_size=32", "model.text.intermediate_size=32", "model.text.head_dim=8",
    "model.text.num_hidden_layers=1", "precision=float32", "stages.0.pictures=4", "stages.1.pictures=4",
)  # fmt: skip
_COSTS = ("seconds", "memory_mib", "pictures_per_s", "tokens_per_s")


def metrics(run: Path) -> list[dict]:
    """What every step of a run learned; what it cost is another matter, and differs from run to run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in _COSTS} for line in lines]


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


def _language_models(vocabulary: int, tokenizer) -> dict[str, PreTrainedConfig]:
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


def one_question(
    id: str,
    picture: Path,
    question: str,
    answer: str,
    *,
    task: str | None = None,
    group: str = "g",
    split: str = "test",
) -> Row:
    """A row that asks one question about one picture."""
    turn = Turn((PicturePlace(0), question), (answer,))
    return Row(id, (PictureFile(picture),), (turn,), task, group, split)


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
