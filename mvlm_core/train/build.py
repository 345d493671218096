"""What a configuration describes, built: the processor, and the model, each part from nothing or from its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from pydantic import ValidationError
from transformers import PreTrainedModel

from export.runtime.errors import MvlmError
from export.runtime.families import POOLED
from export.runtime.views.cutting import ClosestAspect
from export.runtime.views.spec import ViewSpec
from mvlm_core.backbones.byte_tokenizer import train_tokenizer
from mvlm_core.backbones.load import (
    load_language_model,
    load_tokenizer,
    load_tower,
    picture_settings,
    text_config,
    vision_config,
)
from mvlm_core.backbones.tokenizer_setup import speak
from mvlm_core.checkpoints.run_folder import load_processor, load_run, run_config
from mvlm_core.data.reading import Row
from mvlm_core.modeling.model import MvlmConfig, MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmImageProcessor, MvlmProcessor
from mvlm_core.modeling.vision_towers import require_layer, tower_grid_side, tower_size_px, vision_width

from .config import TrainConfig
from .model_config import ImageConfig, ModelConfig

# What says which connector it is, and where it reads the tower; the rest of `ModelConfig` says where weights come from.
_CONNECTOR = ("connector", "connector_positions", "num_queries", "num_heads", "value_mlp")
# These have the same weights, and differ in how they tell the patches.
_OF_THE_START = (*_CONNECTOR, "grid_side", "vision_feature_layer", "pixel_shuffle")
_HALF = (0.5, 0.5, 0.5)


def resolve_config(config: TrainConfig) -> TrainConfig:
    """With everything filled in that the parts of the model decide. Reads their configurations, and no weights.

    Raises `MvlmError` for parts that are not there or are not built here, a grid that is not the tower's, pictures of
    a size that it does not take, and scales that its grid does not allow.
    """
    model = resolve_model(config.model)
    config = config.model_copy(update={"model": model})
    try:
        TrainConfig.model_validate(config.model_dump())
    except ValidationError as error:
        faults = "; ".join(str(fault["msg"]).removeprefix("Value error, ") for fault in error.errors())
        raise MvlmError(f"the vision tower has a grid of {model.grid_side} x {model.grid_side}: {faults}") from None
    return config


def resolve_model(config: ModelConfig) -> ModelConfig:
    """As `resolve_config`, of the model alone; the same again when all is filled in."""
    if config.start:
        begin = run_config(config.start)
        stated = {key: getattr(config, key) for key in config.model_fields_set}
        found = {key: stated.get(key, getattr(begin, key)) for key in _OF_THE_START}
        tower, image = begin.vision_config, _image_of_start(config.image, load_processor(config.start).image_processor)
        if begin.newline and found["connector"] != "pool":
            raise MvlmError(
                f"{config.start} puts the tokens of tiles together to a grid, which {found['connector']} has none of:"
                " leave model.connector at pool"
            )
    else:
        told, found = config.vision or {}, {}
        text_config(config.text or {})  # whether there is such a language model
        tower = vision_config(told)
        image = _image(config.image, picture_settings(told), tower_size_px(tower))
    side = tower_grid_side(tower, image.size_px or 0)
    require_layer(tower, found.get("vision_feature_layer", config.vision_feature_layer))
    _require_heads(config.model_copy(update=found), vision_width(tower))
    if config.grid_side not in (None, side):
        raise MvlmError(
            f"model.grid_side is {config.grid_side}, and the vision tower ({tower.model_type}) leaves a grid of"
            f" {side} x {side}: leave grid_side out"
        )
    return config.model_copy(update=found | {"grid_side": side, "image": image})


def positions_of(config: ModelConfig) -> int:
    """How many positions the language model was made for. Reads its configuration, and no weights."""
    told = run_config(config.start).text_config if config.start else text_config(config.text or {})
    return told.max_position_embeddings


def _require_heads(config: ModelConfig, width: int) -> None:
    if config.connector == "query" and (width % config.num_heads or width % 4):
        raise MvlmError(
            f"the vision tower is {width} wide, which the query connector's {config.num_heads} heads cannot share (and"
            " its codes take quarters of it): set model.num_heads to a divisor"
        )


def _image_of_start(stated: ImageConfig, images: MvlmImageProcessor) -> ImageConfig:
    """What the start says of pictures, but for what is stated. Raises `MvlmError` where its views cannot be changed."""
    told = {
        key: value for key, value in stated.model_dump(include=stated.model_fields_set).items() if value is not None
    }
    spec = images.view_spec
    if spec is None:
        return ImageConfig(**images.spec.to_json() | told)
    found = ImageConfig(size_px=spec.size_px, mean=spec.mean, std=spec.std)
    changed = [key for key, value in told.items() if value != getattr(found, key)]
    if changed:
        raise MvlmError(f"model.image states {', '.join(changed)}, and the views of the start stay: leave it out")
    return found


def _image(stated: ImageConfig, found: dict[str, Any], made_for: int | None) -> ImageConfig:
    size_px = stated.size_px or found.get("size_px") or made_for
    if size_px is None:
        raise MvlmError("nothing says how large the pictures are: set model.image.size_px")
    defaults = {"mean": _HALF, "std": _HALF, "resample": "bicubic"}
    return ImageConfig(**defaults | found | {"size_px": size_px} | stated.model_dump(exclude_none=True))


def build_processor(config: TrainConfig, rows: Sequence[Row]) -> MvlmProcessor:
    """The pictures' settings, and the tokenizer: the language model's own, or one trained on the words of the rows.

    `config` is one that `resolve_config` has filled in.
    """
    model = config.model
    images = _image_processor(model)
    told = model.text or {}
    if model.start:
        begun = load_processor(model.start)
        images = begun.image_processor if begun.image_processor.views else images
        if model.chat_template is None:
            return MvlmProcessor(images, begun.tokenizer, chat_template=str(begun.chat_template))
        tokenizer, name = begun.tokenizer, str(model.start)
    elif "name" in told:
        tokenizer, name = load_tokenizer(told), told["name"]
    else:
        tokenizer, name = train_tokenizer([text for row in rows for text in row.texts()]), "the rows"
    return speak(tokenizer, images, name=name, stated=model.chat_template).processor


def _image_processor(model: ModelConfig) -> MvlmImageProcessor:
    told = model.image.model_dump(exclude={"tiles"})
    if model.image.tiles:
        views = ViewSpec(
            size_px=told["size_px"], grid_side=model.grid_side or 0, mean=told["mean"], std=told["std"],
            rule=ClosestAspect(1, model.image.tiles), resample=told["resample"],
        )  # fmt: skip
        told["views"] = views.to_json()
    return MvlmImageProcessor(**told)


def build_model(config: TrainConfig, processor: MvlmProcessor) -> MvlmForConditionalGeneration:
    """The model of a configuration that was resolved, float32. What starts from nothing is the same for a seed."""
    model_config = config.model
    torch.manual_seed(config.seed)
    model = (
        _from_start(model_config, model_config.start) if model_config.start else _from_parts(model_config, processor)
    )
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    if model.config.vision_config.model_type == "resnet" and not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        tower: Any = model.vision_tower
        tower.to(memory_format=torch.channels_last)  # convolutions are faster so on a CPU; FSDP refuses to shard it
    return model


def weights_from(config: TrainConfig) -> list[str]:
    """Where the weights of each part come from, in words for a person: nothing is initialised in silence."""
    model, fresh = config.model, f"from nothing, seed {config.seed}"
    if model.start:
        begin = run_config(model.start)
        connector = f"from {model.start}"
        if _keeps_values(model, begin):
            connector += f", where it is {begin.connector}"
        elif _connector_is_new(model, begin):
            connector = fresh
        return [f"vision tower and language model: from {model.start}", f"connector ({model.connector}): {connector}"]
    told = {"vision tower": model.vision or {}, "language model": model.text or {}}
    parts = [f"{part}: " + (f"from {t['name']}" if "name" in t else fresh) for part, t in told.items()]
    return [*parts, f"connector ({model.connector}): {fresh}"]


def _from_parts(config: ModelConfig, processor: MvlmProcessor) -> MvlmForConditionalGeneration:
    vision, text = config.vision or {}, config.text or {}
    tokenizer = processor.tokenizer
    vocabulary = {
        "vocab_size": len(tokenizer), "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    told = MvlmConfig(
        vision_config=vision_config(vision),
        text_config=text_config(text, **vocabulary),
        image_token_id=processor.image_token_id,
        query_start=config.query_start,
        **{key: getattr(config, key) for key in _OF_THE_START},
    )
    tower: PreTrainedModel | None = load_tower(vision, told.vision_config) if "name" in vision else None
    language_model = load_language_model(text, told.text_config) if "name" in text else None
    return MvlmForConditionalGeneration(told, tower, language_model)


def _from_start(config: ModelConfig, run: Path) -> MvlmForConditionalGeneration:
    begun, _ = load_run(run)
    begin: MvlmConfig = begun.config  # type: ignore[assignment]
    if not _connector_is_new(config, begin):
        begin.vision_feature_layer = config.vision_feature_layer
        return begun
    told = begin.to_dict() | {key: getattr(config, key) for key in (*_OF_THE_START, "query_start")}
    told["num_visual_tokens"] = None  # what the start showed is not what the new connector will
    model = MvlmForConditionalGeneration(MvlmConfig.from_dict(told), begun.vision_tower, begun.language_model)
    if _keeps_values(config, begin):
        model.connector.load_state_dict(begun.connector.state_dict())
    return model


def _connector_is_new(config: ModelConfig, begun: MvlmConfig) -> bool:
    """Whether a connector is told that is not the start's."""
    counts = _CONNECTOR if config.connector == "query" else ("connector", "connector_positions")
    return any(getattr(config, key) != getattr(begun, key) for key in counts)


def _keeps_values(config: ModelConfig, begun: MvlmConfig) -> bool:
    """Whether a connector is another than the start's, and its weights are the start's all the same."""
    kinds = {config.connector, begun.connector}
    return kinds == POOLED and config.connector_positions == begun.connector_positions
