"""What a configuration describes, built: the processor from the rows' words, and the model that starts from nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoConfig

from .config import ModelConfig, TrainConfig
from .model import MvlmConfig, MvlmForConditionalGeneration
from .processing import MvlmImageProcessor, MvlmProcessor
from .rows import Row
from .tokenizer import train_tokenizer


def build_processor(config: TrainConfig, rows: Sequence[Row]) -> MvlmProcessor:
    """The configuration's picture settings, and a tokenizer trained on the words of the rows."""
    texts = [text for row in rows for text in row.texts()]
    return MvlmProcessor(MvlmImageProcessor(**config.model.image.model_dump()), train_tokenizer(texts))


def build_model(config: TrainConfig, processor: MvlmProcessor) -> MvlmForConditionalGeneration:
    """A model that starts from nothing, the same for the same seed; its words are the processor's."""
    torch.manual_seed(config.seed)
    model = MvlmForConditionalGeneration(_model_config(config.model, processor))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    if model.config.vision_config.model_type == "resnet":
        model.vision_tower.to(memory_format=torch.channels_last)  # convolutions are faster so on a CPU
    return model


def _model_config(config: ModelConfig, processor: MvlmProcessor) -> MvlmConfig:
    tokenizer = processor.tokenizer
    vocabulary = {
        "vocab_size": len(tokenizer), "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    return MvlmConfig(
        vision_config=AutoConfig.for_model(**config.vision),
        text_config=AutoConfig.for_model(**config.text, **vocabulary),
        image_token_id=processor.image_token_id,
        **config.model_dump(exclude={"vision", "text", "image"}),
    )
