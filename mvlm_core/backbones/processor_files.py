"""The processor of an imported checkpoint: its picture settings, its tokenizer with <image>, LLaVA-1.5's prompt."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from export.runtime.errors import MvlmError
from mvlm_core.modeling.model import MvlmConfig
from mvlm_core.modeling.processing import IMAGE_TOKEN, MvlmImageProcessor

from .tensor_files import read_json, telling
from .tokenizer_setup import Words, speak

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
# LLaVA-1.5 talks as Vicuna does, whatever template came with its Llama.
_LLAVAS = {"llama": "vicuna"}
# What CLIP's image processor does by default, and must do here: resized, scaled to 0..1, normalised.
_PICTURE_SETTINGS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
# PIL's numbers of the filters that resize; image processors that name none take the cubic one.
_BICUBIC = 3
_FILTERS = {2: "bilinear", _BICUBIC: "bicubic"}


def read_words(folder: Path, config: MvlmConfig, images: MvlmImageProcessor) -> Words | None:
    """The processor of a checkpoint, whose tokenizer has <image> as a special token; None when it has no tokenizer.

    Raises `MvlmError` when the tokenizer cannot be read, does not fit the table, or comes without a usable template.
    """
    name = next((name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    if name is None:
        return None
    tokenizer = read_tokenizer(folder, name)
    rows, known = config.text_config.vocab_size, len(tokenizer)
    if known > rows:
        raise MvlmError(
            f"{folder / name} has {known} tokens, and the word table {rows} rows: they belong to two models"
        )
    words = speak(tokenizer, images, name=str(folder), otherwise=_LLAVAS.get(config.text_config.model_type))
    image_id = words.processor.image_token_id
    if config.image_token_id not in (image_id, rows):  # past the table: the configuration names none
        raise MvlmError(
            f"{IMAGE_TOKEN} is token {image_id} of {folder / name}, and {config.image_token_id} of the configuration:"
            " they belong to two models"
        )
    return words


def read_images(folders: Sequence[Path], aspect: str | None, size_px: int) -> MvlmImageProcessor:
    """The picture settings of the first folder that has any; `aspect` is LLaVA's `image_aspect_ratio`.

    Raises `MvlmError` when there are none, when they are for another size, or do what is not done here.
    """
    if aspect not in (None, "square", "pad"):
        raise MvlmError(
            f"the pictures are cut into several (image_aspect_ratio {aspect}), and only whole ones are read"
        )
    file, told = _picture_settings(folders)
    with telling(file):
        images = _images(file, told, aspect, size_px)
        _ = images.spec  # whether it can be meant
    return images


def _images(file: Path, told: dict[str, Any], aspect: str | None, size_px: int) -> MvlmImageProcessor:
    resample = _FILTERS.get(told.get("resample", _BICUBIC))
    wrong = [
        f"{key} is {told[key]!r} and not {value!r}"
        for key, value in _PICTURE_SETTINGS.items()
        if told.get(key, value) != value
    ]
    if resample is None:
        wrong.append(f"resample is {told['resample']} and not one of {', '.join(map(str, _FILTERS))}")
    cropped = bool(told.get("do_center_crop", True))
    size = _side(told.get("crop_size" if cropped else "size"))
    if size != size_px:
        wrong.append(f"pictures become {size} pixels wide, and the vision tower takes {size_px}")
    if cropped and _side(told.get("size")) != size:
        wrong.append("pictures are cut smaller than they are resized")
    if wrong:
        raise MvlmError(f"{file} describes what is not done here: {'; '.join(wrong)}")
    fit = "pad" if aspect == "pad" or told.get("do_pad") else "crop" if cropped else "stretch"
    return MvlmImageProcessor(
        size_px=size_px, mean=told["image_mean"], std=told["image_std"], fit=fit, resample=resample or ""
    )


def tower_settings(file: Path) -> dict[str, Any]:
    """Of a tower's preprocessor_config.json, as far as it says them: `size_px`, `mean`, `std`, `resample`.

    Raises `MvlmError` for a filter that pictures are not resized with here.
    """
    told = read_json(file)
    number = told.get("resample")
    with telling(file):
        if number is not None and number not in _FILTERS:
            raise MvlmError(f"{file}: resample is {number}, and pictures are resized by {_FILTERS} here")
        found = {
            "size_px": _side(told.get("crop_size") or told.get("size")),
            "mean": told.get("image_mean"), "std": told.get("image_std"), "resample": _FILTERS.get(number or 0),
        }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


def _picture_settings(folders: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    for folder in folders:
        for name, inside in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
            file = folder / name
            if file.is_file():
                told = read_json(file)
                told = told.get(inside, {}) if inside else told
                if "image_mean" in told and "image_std" in told:
                    return file, told
    raise MvlmError(
        f"no preprocessor_config.json with image_mean and image_std in {' or '.join(map(str, folders))}: get the whole"
        " checkpoint, and the vision tower's"
    )


def _side(size: Any) -> int | None:
    """The one side that 336, {"shortest_edge": 336} and {"height": 336, "width": 336} name."""
    sides = {size} if isinstance(size, int) else set((size or {}).values())
    return sides.pop() if len(sides) == 1 else None


def read_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    # A tokenizer.json is taken as it stands; a bare sentencepiece model, which only Llama's come with, is converted.
    reader: Any = PreTrainedTokenizerFast if name == "tokenizer.json" else LlamaTokenizer
    if reader is LlamaTokenizer and importlib.util.find_spec("sentencepiece") is None:
        raise MvlmError(
            f"{folder / name} is read with the package sentencepiece: pip install sentencepiece protobuf, or put a"
            " tokenizer.json into the folder"
        )
    try:
        tokenizer = reader.from_pretrained(folder, local_files_only=True, padding_side="left", trust_remote_code=False)
    except Exception as error:  # the converters raise bare exceptions of many kinds
        reason = " ".join(str(error).split())[:120]
        raise MvlmError(f"{folder / name} cannot be read ({reason}): put a tokenizer.json into the folder") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.eos_token is None:
        raise MvlmError(
            f"{folder / name} names no end of an answer (eos_token): put its tokenizer_config.json beside it"
        )
    return tokenizer
