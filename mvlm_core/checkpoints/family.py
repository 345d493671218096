"""The families that people deploy, as transformers saves them: what of each is which part of our model.

A family is one entry of `FAMILIES`, by the `model_type` of its configuration. What a checkpoint says that is not done
here is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from export.runtime.errors import MvlmError
from export.runtime.views import ClosestAspect, LongestEdge, Marks, Pinpoints, Stitching, Whole
from mvlm_core.modeling.vision_towers import leading_tokens, tower_size_px

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """Attributes:
    title: for people.
    model_class, image_processor: transformers' classes.
    parts: how its parts are named in the model that transformers loads, and how in ours, by their beginnings.
    connector: its configuration -> the fields of `MvlmConfig` that say how the tower is read and projected.
    views: its configuration, picture settings and tokenizer -> the fields of `ViewSpec` that are the family's own.
    settings: of its image processor, those that `views` looks at.
    """

    title: str
    model_class: str
    image_processor: str
    parts: dict[str, str]
    connector: Callable[[PreTrainedConfig], dict[str, Any]]
    views: Callable[[PreTrainedConfig, Settings, PreTrainedTokenizerBase], dict[str, Any]]
    settings: frozenset[str]


def require(told: Mapping[str, Any] | PreTrainedConfig, only: Mapping[str, Any], where: str) -> None:
    """Raise `MvlmError` naming every setting of `told` that is another than `only` allows."""
    found = told if isinstance(told, Mapping) else {key: getattr(told, key, None) for key in only}
    wrong = [f"{key} is {found[key]!r} and not {value!r}" for key, value in only.items() if found.get(key) != value]
    if wrong:
        raise MvlmError(f"{where} describes what is not done here: {'; '.join(wrong)}")


def _act(config: PreTrainedConfig) -> str:
    if config.projector_hidden_act not in ACT2FN:
        raise MvlmError(f"config.json: projector_hidden_act {config.projector_hidden_act!r} is none that is known")
    return str(config.projector_hidden_act)


def _layer(config: PreTrainedConfig) -> int:
    if not isinstance(config.vision_feature_layer, int):
        raise MvlmError(
            f"config.json: vision_feature_layer is {config.vision_feature_layer!r}, and one layer of the tower is read"
        )
    return config.vision_feature_layer


def _require_all_patches(config: PreTrainedConfig) -> None:
    """The patches are read, and of what stands before them nothing."""
    wanted = "default" if leading_tokens(config.vision_config) == 1 else "full"
    require(config, {"vision_feature_select_strategy": wanted}, "config.json")


def _smolvlm_connector(config: PreTrainedConfig) -> dict[str, Any]:
    return {"projector": "linear", "pixel_shuffle": int(config.scale_factor), "vision_feature_layer": -1}


def _smolvlm_views(config: PreTrainedConfig, told: Settings, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    side = tower_size_px(config.vision_config)
    require(told, {"max_image_size": {"longest_edge": side}}, "the image processor")
    size = told["size"]
    if set(size) != {"longest_edge"}:
        raise MvlmError(f"the image processor describes what is not done here: size is {size!r} and no longest_edge")
    named = {
        key: getattr(tokenizer, name, None) or default
        for key, name, default in (
            ("start", "fake_image_token", "<fake_token_around_image>"),
            ("overview", "global_image_token", "<global-img>"),
        )
    }
    return {
        "rule": LongestEdge(int(size["longest_edge"]), bool(told["do_image_splitting"])),
        "overview_last": True,
        "marks": Marks("grid", **named),
        "clip_words": "timed" if config.model_type == "smolvlm" else "none",  # Idefics3 knows no clips
    }


def _internvl_connector(config: PreTrainedConfig) -> dict[str, Any]:
    _require_all_patches(config)
    shuffle = round(1 / config.downsample_ratio)
    require(config, {"downsample_ratio": 1 / shuffle}, "config.json")
    return {
        "projector": "norm_mlp", "projector_act": _act(config), "pixel_shuffle": shuffle,
        "vision_feature_layer": _layer(config),
    }  # fmt: skip


def _internvl_views(config: PreTrainedConfig, told: Settings, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    side = tower_size_px(config.vision_config)
    require(told, {"size": {"height": side, "width": side}}, "the image processor")
    # Whatever its file says of crop_to_patches: InternVL's own processor asks for it.
    most = int(told["max_patches"])
    marks = {}
    for key, name in (("start", "start_image_token"), ("end", "end_image_token")):
        token = getattr(tokenizer, name, None) or tokenizer.init_kwargs.get(name)
        if not isinstance(token, str):
            raise MvlmError(f"tokenizer_config.json names no {name}, which InternVL puts around a picture")
        marks[key] = token
    return {
        "rule": ClosestAspect(int(told["min_patches"]), most) if most > 1 else Whole(),
        "overview_last": True,
        "marks": Marks("span", **marks),
        "clip_words": "numbered",
    }


def _llava_connector(config: PreTrainedConfig) -> dict[str, Any]:
    _require_all_patches(config)
    layer = _layer(config)
    # Its -1 is the last layer as it is, before the norm that stands behind; ours is behind that.
    return {
        "projector": "mlp", "projector_act": _act(config), "projector_bias": bool(config.multimodal_projector_bias),
        "vision_feature_layer": config.vision_config.num_hidden_layers if layer == -1 else layer, "newline": True,
    }  # fmt: skip


def _llava_views(config: PreTrainedConfig, told: Settings, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    side = tower_size_px(config.vision_config) or 0
    sizes = [told["size"], told.get("crop_size") or told["size"]]
    if any(set(size.values()) != {side} for size in sizes):
        raise MvlmError(
            f"the image processor describes what is not done here: it makes views of {sizes}, not of {side}"
        )
    require(told, {"image_grid_pinpoints": config.image_grid_pinpoints}, "the image processor")
    grids = []
    for height, width in config.image_grid_pinpoints:
        if height % side or width % side:
            raise MvlmError(f"config.json: no tiles of {side} pixels fill the pinpoint {height} x {width}")
        grids.append((height // side, width // side))
    most = getattr(config, "vision_aspect_ratio", None)
    return {"rule": Pinpoints(tuple(grids)), "stitching": Stitching(None if most is None else _most_tiles(most))}


def _most_tiles(aspect: str) -> int:
    name, _, number = aspect.rpartition("_")
    if name != "anyres_max" or not number.isdecimal():
        raise MvlmError(f"config.json: vision_aspect_ratio is {aspect!r}, and only anyres_max_ and a number is read")
    return int(number)


_TEXT = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
_LLAVA = {
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.linear_1.": "connector.mlp.0.",
    "model.multi_modal_projector.linear_2.": "connector.mlp.2.",
    "model.image_newline": "connector.newline",
    **_TEXT,
}
_SMOLVLM = {
    "model.vision_model.": "vision_tower.",
    "model.connector.modality_projection.proj.": "connector.mlp.0.",
    "model.text_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
_INTERNVL = {
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.layer_norm.": "connector.mlp.0.",
    "model.multi_modal_projector.linear_1.": "connector.mlp.1.",
    "model.multi_modal_projector.linear_2.": "connector.mlp.3.",
    **_TEXT,
}
_SPLITTING = frozenset({"size", "max_image_size", "do_image_splitting"})
_PINPOINTS = frozenset({"size", "crop_size", "do_center_crop", "image_grid_pinpoints"})

FAMILIES = {
    "smolvlm": Family(
        "SmolVLM", "SmolVLMForConditionalGeneration", "SmolVLMImageProcessorPil", _SMOLVLM, _smolvlm_connector,
        _smolvlm_views, _SPLITTING,
    ),
    "idefics3": Family(
        "Idefics3", "Idefics3ForConditionalGeneration", "Idefics3ImageProcessorPil", _SMOLVLM, _smolvlm_connector,
        _smolvlm_views, _SPLITTING,
    ),
    "internvl": Family(
        "InternVL", "InternVLForConditionalGeneration", "GotOcr2ImageProcessorPil", _INTERNVL, _internvl_connector,
        _internvl_views, frozenset({"size", "crop_to_patches", "min_patches", "max_patches"}),
    ),
    "llava_next": Family(
        "LLaVA-NeXT", "LlavaNextForConditionalGeneration", "LlavaNextImageProcessorPil", _LLAVA, _llava_connector,
        _llava_views, _PINPOINTS,
    ),
    "llava_onevision": Family(
        "LLaVA-OneVision", "LlavaOnevisionForConditionalGeneration", "LlavaOnevisionImageProcessorPil", _LLAVA,
        _llava_connector, _llava_views, _PINPOINTS,
    ),
}  # fmt: skip
