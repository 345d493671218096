"""A checkpoint of a family that people deploy -> a run, exactly: every tensor and every setting is accounted for.

transformers' own class reads the tensors, so every layout that it has ever had is read; what it did not want, and what
it lacked, is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.image_utils import PILImageResampling

from export.runtime.errors import MvlmError, listed
from export.runtime.views import ViewSpec
from mvlm_core.backbones.processor_files import read_tokenizer
from mvlm_core.backbones.tensor_files import faults_of_loading, read_json, read_tensors, telling
from mvlm_core.modeling.model import MvlmConfig, MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmImageProcessor, MvlmProcessor
from mvlm_core.modeling.vision_towers import leading_tokens, require_tower, tower_grid_side, tower_size_px

from .family import FAMILIES, Family, require
from .unmerged import require_nothing_beside

_HEAD = "language_model.lm_head.weight"
_LANGUAGE_MODELS = ("llama", "qwen2", "qwen3", "mistral")
_DONE = ("do_resize", "do_rescale", "do_normalize")
_READ = frozenset({"resample", "rescale_factor", "image_mean", "image_std", *_DONE})
# Of an image processor: what changes no picture that is one of its own kind, or says only how it is called.
_BESIDES = frozenset({
    "do_convert_rgb", "do_pad", "image_processor_type", "processor_class", "return_tensors", "input_data_format",
    "data_format", "device", "disable_grouping", "default_to_square", "auto_map", "image_seq_length", "video_sampling",
    "feature_extractor_type", "_valid_processor_keys", "_valid_kwargs_names", "size_divisor", "num_frames",
})  # fmt: skip
_BESIDES_THE_PROCESSOR = frozenset({
    "image_processor", "video_processor", "tokenizer", "processor_class", "auto_map", "chat_template", "video_token",
})  # fmt: skip


def is_family(checkpoint: Path) -> bool:
    """Whether a folder holds a model of one of `FAMILIES`. Raises `MvlmError` when its config.json cannot be read."""
    return str(read_json(checkpoint / "config.json").get("model_type")) in FAMILIES


class FamilyCheckpoint:
    """A checkpoint of a family, read."""

    def __init__(self, folder: Path) -> None:
        """Raises `MvlmError` for a checkpoint that is not whole, and for one that asks for what is not done here."""
        self.folder = folder
        with telling(folder / "config.json"):
            told: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.told: PreTrainedConfig = told
        self.family: Family = FAMILIES[told.model_type]
        _require_language_model(told.text_config)
        require_tower(told.vision_config, f"the vision tower of {folder}")
        self.connector = self.family.connector(told)
        self.side = self._grid_side()
        self.stored = read_tensors(folder)
        require_nothing_beside(self.stored)
        self.loaded = self._load()
        self.config = self._config()
        self.tokenizer = read_tokenizer(folder, "tokenizer.json")
        self.views = self._views()

    def _load(self) -> PreTrainedModel:
        kind: Any = getattr(transformers, self.family.model_class)
        with telling(self.folder / "config.json"):
            loaded, loading = kind.from_pretrained(
                None, config=self.told, state_dict=dict(self.stored.tensors), dtype="auto", output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        if faults := faults_of_loading(loaded, loading):
            raise MvlmError(
                f"tensors of {self.folder} that are not in order: {len(faults)}; get it again{listed(faults)}"
            )
        return loaded

    def _grid_side(self) -> int:
        """Of the tokens that a view makes by itself."""
        vision: Any = self.told.vision_config
        side, shuffle = tower_grid_side(vision, tower_size_px(vision) or 0), self.connector.get("pixel_shuffle", 1)
        if side % shuffle:
            raise MvlmError(f"{self.folder}: a grid of {side} x {side} patches has no cells of {shuffle} x {shuffle}")
        return side // shuffle

    def _config(self) -> MvlmConfig:
        told: Any = self.told
        told.text_config.tie_word_embeddings = _is_tied(self.loaded)
        return MvlmConfig(
            vision_config=told.vision_config, text_config=told.text_config, image_token_id=told.image_token_id,
            grid_side=self.side * self.connector.get("pixel_shuffle", 1), num_visual_tokens=self.side**2,
            dtype=self.loaded.dtype, **self.connector,
        )  # fmt: skip

    def _views(self) -> dict[str, Any]:
        kind: Any = getattr(transformers, self.family.image_processor)
        try:
            told = kind.from_pretrained(self.folder, local_files_only=True).to_dict()
        except (OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise MvlmError(f"the image processor of {self.folder} cannot be read ({reason}): get it again") from None
        unknown = {key for key, value in told.items() if value is not None} - _READ - self.family.settings - _BESIDES
        if unknown:
            raise MvlmError(
                "the image processor describes what is not done here: "
                + "; ".join(f"{key} is {told[key]!r}" for key in sorted(unknown))
            )
        require(told, dict.fromkeys(_DONE, True), "the image processor")
        own = self.family.views(self.told, {key: _plain(value) for key, value in told.items()}, self.tokenizer)
        token = self.tokenizer.convert_ids_to_tokens(self.config.image_token_id)
        if not isinstance(token, str):
            raise MvlmError(f"{self.folder}: the tokenizer has no token {self.config.image_token_id}, the picture's")
        spec = ViewSpec(
            size_px=tower_size_px(self.told.vision_config) or 0,
            grid_side=self.side,
            mean=_three(told["image_mean"]), std=_three(told["image_std"]), rescale=float(told["rescale_factor"]),
            resample=PILImageResampling(told["resample"]).name.lower(), image_token=token, **own,
        )  # fmt: skip
        self._require_processor(self.side**2, token)
        return spec.to_json()

    def _require_processor(self, tokens: int, image_token: str) -> None:
        """Of processor_config.json, all that it says of a picture is what the model does."""
        file = self.folder / "processor_config.json"
        told = read_json(file) if file.is_file() else {}
        config: Any = self.told
        known = {
            **dict.fromkeys(("image_seq_len", "image_seq_length", "num_image_tokens"), tokens),
            "patch_size": config.vision_config.patch_size,
            "num_additional_image_tokens": leading_tokens(config.vision_config),
            "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
            "vision_aspect_ratio": getattr(config, "vision_aspect_ratio", None),
            "image_token": image_token,
        }
        left = {key: value for key, value in told.items() if value is not None and key not in _BESIDES_THE_PROCESSOR}
        require(left, {key: known.get(key) for key in left}, str(file))

    def processor(self) -> MvlmProcessor:
        """The processor, its chat template as it is. Raises `MvlmError` when there is none, or shows no picture."""
        template = _template(self.folder, self.tokenizer)
        if template is None:
            raise MvlmError(f"{self.folder} holds no chat template: put its chat_template.jinja beside the tokenizer")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        images = MvlmImageProcessor(size_px=self.views["size_px"], views=self.views)
        processor = MvlmProcessor(images, self.tokenizer, chat_template=template)
        if processor.ask("which colour?").count(processor.image_token) != 1:
            raise MvlmError(f"the chat template of {self.folder} does not show a picture as {processor.image_token}")
        return processor

    def state(self) -> dict[str, Tensor]:
        """All tensors by our names. Raises `MvlmError` for those that our model has no place for, or lacks."""
        found: dict[str, Tensor] = {}
        for name, tensor in self.loaded.state_dict().items():
            begin = next((begin for begin in self.family.parts if name.startswith(begin)), None)
            found[name if begin is None else self.family.parts[begin] + name.removeprefix(begin)] = tensor
        with torch.device("meta"):
            wanted = {
                name: tensor.shape for name, tensor in MvlmForConditionalGeneration(self.config).state_dict().items()
            }
        if self.config.tie_word_embeddings:
            found.pop(_HEAD, None), wanted.pop(_HEAD)
        faults = [f"{name} has no place here" for name in sorted(found.keys() - wanted.keys())]
        faults += [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
        faults += [
            f"{name} has another shape" for name in wanted.keys() & found.keys() if found[name].shape != wanted[name]
        ]
        if faults:
            raise MvlmError(
                f"{self.folder} holds another model than its config.json says: {len(faults)}{listed(faults)}"
            )
        return found

    def generation_config(self) -> GenerationConfig:
        if (self.folder / "generation_config.json").is_file():
            with telling(self.folder / "generation_config.json"):
                return GenerationConfig.from_pretrained(self.folder, local_files_only=True)
        return GenerationConfig.from_model_config(self.told.get_text_config())

    def notes(self) -> list[str]:
        """What was read, for a person."""
        spec = ViewSpec.from_json(self.views)
        return [
            f"{self.family.title}: {len(self.stored.tensors)} tensors, every one accounted for",
            f"views of {spec.size_px} pixels, {spec.grid_side**2} tokens each; tiles by {spec.rule.kind}",
            "trained with all tokens of a view only: pooled scales are allowed, and it never saw them",
        ]


def _require_language_model(text: PreTrainedConfig) -> None:
    if text.model_type not in _LANGUAGE_MODELS:
        raise MvlmError(
            f"the language model is a {text.model_type}, and those that are read here are {', '.join(_LANGUAGE_MODELS)}"
        )
    window, longest = getattr(text, "sliding_window", None), text.max_position_embeddings
    slides = "sliding_attention" in (getattr(text, "layer_types", None) or ["sliding_attention"])
    if window and slides and window < longest:
        raise MvlmError(
            f"the language model sees {window} of its {longest} positions (sliding_window), and only those that see all"
            " are read"
        )


def _is_tied(model: PreTrainedModel) -> bool:
    head: Any = model.get_output_embeddings()
    table: Any = model.get_input_embeddings()
    return head.weight.data_ptr() == table.weight.data_ptr()


def _template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        told = read_json(folder / "chat_template.json").get("chat_template")
        return told if isinstance(told, str) else None
    return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None


def _plain(value: Any) -> Any:
    """A setting as JSON has it: transformers keeps sizes in a class of its own, with what is not said as None."""
    if hasattr(value, "__dataclass_fields__"):
        value = {key: getattr(value, key) for key in value.__dataclass_fields__}
    return {key: held for key, held in value.items() if held is not None} if isinstance(value, dict) else value


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = [float(values)] * 3 if isinstance(values, int | float) else values
    return float(red), float(green), float(blue)
