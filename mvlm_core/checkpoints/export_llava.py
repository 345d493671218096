"""A run -> a plain LLaVA that stock transformers loads without this package, where a plain LLaVA can hold it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from export.runtime.errors import MvlmError
from export.runtime.image import FILTERS
from mvlm_core.backbones.tensor_files import read_tensors
from mvlm_core.modeling.model import MvlmConfig
from mvlm_core.modeling.processing import IMAGE_TOKEN, MvlmImageProcessor
from mvlm_core.modeling.scales import pool_scales, require_scales

from .import_checkpoint import grow_words
from .layouts import ON_DISK, TOWER, WORD_TABLE
from .run_folder import model_sha256, run_config


def export_llava(run: Path, out: Path, scale: int) -> list[str]:
    """Write the run's model at one scale into the empty folder `out`; returns what is to be said, a line each.

    Raises `MvlmError` when a plain LLaVA cannot hold the model, saying what another tool would have to do.
    """
    model_sha256(run)
    config = run_config(run)
    require_expressible(config, scale)
    state = read_tensors(run).tensors
    notes = grow_words(state, config)
    llava = LlavaConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        image_token_index=config.image_token_id,
        image_seq_length=scale,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )
    llava.architectures, llava.dtype = [LlavaForConditionalGeneration.__name__], state[WORD_TABLE].dtype
    llava.save_pretrained(out)
    GenerationConfig.from_pretrained(run, local_files_only=True).save_pretrained(out)
    # The step `vision_model` is in the names of every published LLaVA, and every version of transformers reads it.
    layout = replace(ON_DISK, prefixes=ON_DISK.prefixes | {TOWER: f"{ON_DISK.prefixes[TOWER]}vision_model."})
    tensors = {layout.name_of(name): tensor for name, tensor in state.items()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return [*notes, *_save_processor(run, out, config)]


def require_expressible(config: MvlmConfig, scale: int) -> None:
    """Raise `MvlmError` unless a plain LLaVA computes what the model computes at this scale."""
    if config.connector == "query":
        raise MvlmError(
            "a plain LLaVA cannot hold a query connector, whose tokens come from a cross-attention: another tool needs"
            " this package's QueryConnector in the place of the projector"
        )
    if config.connector == "nested_pool":
        raise MvlmError(
            "a plain LLaVA cannot hold a nested_pool connector, whose tokens are what finer grids add: train another"
            " run with model.start naming this one and connector: pool, which keeps the MLP, and write that"
        )
    if config.newline or config.projector != "mlp" or config.pixel_shuffle != 1 or config.projector_act != "gelu":
        raise MvlmError(
            "a plain LLaVA has one view and a projector of two layers, and this run has tiles or another projector:"
            " take the checkpoint that it was imported from"
        )
    finest = config.grid_side**2
    if scale != finest:
        raise MvlmError(
            f"a plain LLaVA shows all {finest} patches and has no place for pooling: write --scale {finest}, and"
            f" {_pooling(config.grid_side, scale)}"
        )
    if not isinstance(config.vision_config, CLIPVisionConfig) or config.connector_positions:
        kind = "one with learned positions" if config.connector_positions else config.vision_config.model_type
        raise MvlmError(f"a plain LLaVA holds a CLIP vision tower as it is, and this run's is {kind}")


def _pooling(side: int, scale: int) -> str:
    require_scales([scale], pool_scales(side))
    kernel = side // round(scale**0.5)
    return (
        f"let the other tool average the projector's output over the {side} x {side} grid with kernel and stride"
        f" {kernel}, which leaves {scale} tokens"
    )


def _save_processor(run: Path, out: Path, config: MvlmConfig) -> list[str]:
    """The picture settings in transformers' words, and the tokenizer with its chat template where the run has one."""
    if not (run / "tokenizer.json").is_file():
        _stock_images(
            AutoImageProcessor.from_pretrained(run, local_files_only=True, trust_remote_code=False)
        ).save_pretrained(out)
        return ["the run holds no tokenizer, so only tensors can be fed to what was written"]
    processor = AutoProcessor.from_pretrained(run, local_files_only=True, trust_remote_code=False)
    LlavaProcessor(
        _stock_images(processor.image_processor),
        processor.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        chat_template=processor.chat_template,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,  # the class token
    ).save_pretrained(out)
    return []


def _stock_images(ours: MvlmImageProcessor) -> LlavaImageProcessorPil:
    square = {"height": ours.size_px, "width": ours.size_px}
    return LlavaImageProcessorPil(
        size={"shortest_edge": ours.size_px} if ours.fit == "crop" else square,
        crop_size=square,
        do_center_crop=ours.fit == "crop",
        do_pad=ours.fit == "pad",
        resample=FILTERS[ours.resample],
        image_mean=ours.mean,
        image_std=ours.std,
    )
