"""The processor of an imported checkpoint: its picture settings, its tokenizer with <image>, LLaVA-1.5's prompt."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from export.runtime.errors import MvlmError

from .checkpoint_files import read_json
from .model import MvlmConfig
from .processing import IMAGE_TOKEN, MvlmImageProcessor, MvlmProcessor

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_TEMPLATE_FILE = "chat_template.jinja"
_GENERATION_MARK = "{% generation %}"
# What CLIP's image processor does by default, and must do here: bicubic, scaled to 0..1, normalised.
_BICUBIC = 3
_PICTURE_SETTINGS = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": _BICUBIC, "rescale_factor": 1 / 255,
}  # fmt: skip
# LLaVA-1.5's conversation `v1` (Vicuna's): llava/conversation.py, separator style TWO. The answer and its end are
# what training supervises.
VICUNA_TEMPLATE = (
    "{{ bos_token }}A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "ASSISTANT:{% generation %}"
    "{% for part in message.content %} {{ part.text }}{% endfor %}{{ eos_token }}"
    "{% endgeneration %}"
    "{% else %}"
    "USER: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %} "
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Words:
    """A checkpoint's processor and what was done to its tokenizer, in words for a person."""

    processor: MvlmProcessor
    notes: list[str]


def read_words(folder: Path, config: MvlmConfig, images: MvlmImageProcessor) -> Words | None:
    """The processor of a checkpoint, whose tokenizer has <image> as a special token; None when it has no tokenizer.

    Raises `MvlmError` when the tokenizer cannot be read, does not fit the table, or comes without a usable template.
    """
    name = next((name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    if name is None:
        return None
    tokenizer, notes = _read_tokenizer(folder, name), []
    rows, known = config.text_config.vocab_size, len(tokenizer)
    if known > rows:
        raise MvlmError(
            f"{folder / name} has {known} tokens, and the word table {rows} rows: they belong to two models"
        )
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
        notes.append(f"{IMAGE_TOKEN} was added to the tokenizer as token {tokenizer.get_vocab()[IMAGE_TOKEN]}")
    image_id = tokenizer.get_vocab()[IMAGE_TOKEN]
    if config.image_token_id not in (image_id, rows):  # past the table: the configuration names none
        raise MvlmError(
            f"{IMAGE_TOKEN} is token {image_id} of {folder / name}, and {config.image_token_id} of the configuration:"
            " they belong to two models"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        notes.append(f"the tokenizer pads with {tokenizer.pad_token}, as it names no token for that")
    template, from_where = _template(folder, config.text_config.model_type, tokenizer)
    return Words(MvlmProcessor(images, tokenizer, chat_template=template), [*notes, from_where])


def read_images(folders: Sequence[Path], aspect: str | None, size_px: int) -> MvlmImageProcessor:
    """The picture settings of the first folder that has any; `aspect` is LLaVA's `image_aspect_ratio`.

    Raises `MvlmError` when there are none, when they are for another size, or do what is not done here.
    """
    if aspect not in (None, "square", "pad"):
        raise MvlmError(
            f"the pictures are cut into several (image_aspect_ratio {aspect}), and only whole ones are read"
        )
    file, told = _picture_settings(folders)
    wrong = [
        f"{key} is {told[key]!r} and not {value!r}"
        for key, value in _PICTURE_SETTINGS.items()
        if told.get(key, value) != value
    ]
    cropped = bool(told.get("do_center_crop", True))
    size = _side(told.get("crop_size" if cropped else "size"))
    if size != size_px:
        wrong.append(f"pictures become {size} pixels wide, and the vision tower takes {size_px}")
    if cropped and _side(told.get("size")) != size:
        wrong.append("pictures are cut smaller than they are resized")
    if wrong:
        raise MvlmError(f"{file} describes what is not done here: {'; '.join(wrong)}")
    fit = "pad" if aspect == "pad" or told.get("do_pad") else "crop" if cropped else "stretch"
    return MvlmImageProcessor(size_px=size_px, mean=told["image_mean"], std=told["image_std"], fit=fit)


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


def _read_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    # A tokenizer.json is taken as it stands; a bare sentencepiece model, which only Llama's come with, is converted.
    reader: Any = PreTrainedTokenizerFast if name == "tokenizer.json" else LlamaTokenizer
    if reader is LlamaTokenizer and importlib.util.find_spec("sentencepiece") is None:
        raise MvlmError(
            f"{folder / name} is read with the package sentencepiece: pip install sentencepiece protobuf, or put a"
            " tokenizer.json into the folder"
        )
    try:
        tokenizer = reader.from_pretrained(folder, local_files_only=True, padding_side="left")
    except Exception as error:  # the converters raise bare exceptions of many kinds
        reason = " ".join(str(error).split())[:120]
        raise MvlmError(f"{folder / name} cannot be read ({reason}): put a tokenizer.json into the folder") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.eos_token is None:
        raise MvlmError(
            f"{folder / name} names no end of an answer (eos_token): put its tokenizer_config.json beside it"
        )
    return tokenizer


def _template(folder: Path, text_type: str, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    own = (
        (folder / _TEMPLATE_FILE).read_text("utf-8") if (folder / _TEMPLATE_FILE).is_file() else tokenizer.chat_template
    )
    if isinstance(own, str) and _GENERATION_MARK in own:
        return own, "the chat template is the checkpoint's own"
    if text_type != "llama" or tokenizer.bos_token is None:
        raise MvlmError(
            f"the chat template of {folder} does not mark what training supervises, and LLaVA-1.5's fits Vicuna only:"
            f" put one with {_GENERATION_MARK} marks into {_TEMPLATE_FILE}"
        )
    return VICUNA_TEMPLATE, "the chat template is LLaVA-1.5's for Vicuna (v1)"
