"""What the configuration files of a published checkpoint say, as a configuration of ours. Sizes are never assumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig

from export.runtime.errors import MvlmError
from mvlm_core.backbones.tensor_files import read_json, telling
from mvlm_core.modeling.model import MvlmConfig
from mvlm_core.modeling.scales import parse_scales, pool_scales, require_scales

from .config_sizes import require_sizes

M3_SCALES = "matryoshka_vis_token_scale"
# Settings of LLaVA's own code that change what is computed, and the values that LLaVA-1.5, M3 and MQT have (or leave
# out, which means the same there).
_LLAVA_SETTINGS = {"mm_vision_select_feature": "patch", "mm_patch_merge_type": "flat", "mm_use_im_start_end": False}
_TRANSFORMERS_SETTINGS = {
    "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu", "multimodal_projector_bias": True,
}  # fmt: skip


@dataclass(frozen=True)
class QuerySizes:
    """Of MQT's resampler: what its tensors say, and the number of heads, which nothing in a checkpoint says."""

    num_queries: int
    num_heads: int


def original_config(file: Path, tower: CLIPVisionConfig, query: QuerySizes | None) -> MvlmConfig:
    """The configuration of a checkpoint in LLaVA's own layout; `query` for MQT's resampler.

    No row of the word table stands for the picture there, so the placeholder is the first id past the table.
    """
    told = read_json(file)
    only = _LLAVA_SETTINGS | ({} if query else {"mm_projector_type": "mlp2x_gelu"})
    _require_settings(file, told, only)
    width = told.get("mm_hidden_size")
    if type(width) is not int:
        raise MvlmError(f"{file} says no whole number as mm_hidden_size, the width of its vision tower: get it again")
    if width != tower.hidden_size:
        raise MvlmError(
            f"{file} wants a vision tower of width {width} (mm_hidden_size), and the tower's is {tower.hidden_size}:"
            " name the right one with --vision-tower"
        )
    if query and width % query.num_heads:
        raise MvlmError(
            f"a resampler of width {width} cannot have {query.num_heads} heads: set --num-heads to what the code that"
            " trained it fixes"
        )
    fields = (set(LlamaConfig.__annotations__) | {"rope_theta", "rope_scaling"}) - {"use_cache"}
    with telling(file):
        text = LlamaConfig(**{key: told[key] for key in fields & set(told)})
        return MvlmConfig(
            text_config=text, image_token_id=text.vocab_size,
            **_seen(file, tower, told.get("mm_vision_select_layer")), **_connector(told, tower, query),
        )  # fmt: skip


def transformers_config(file: Path) -> MvlmConfig:
    """The configuration of a checkpoint in the layout of transformers' LLaVA."""
    told = read_json(file)
    with telling(file):
        llava = LlavaConfig.from_dict(told)
        _require_settings(file, llava.to_dict(), _TRANSFORMERS_SETTINGS)
        tower = _require_clip(file, llava.vision_config)
        return MvlmConfig(
            text_config=llava.text_config, image_token_id=llava.image_token_index,
            **_seen(file, tower, llava.vision_feature_layer), **_connector(told, tower, None),
        )  # fmt: skip


def tower_folder(checkpoint: Path, named: Path | None) -> Path:
    """The folder of the vision tower: the one named by hand, or the one inside the checkpoint that its config names."""
    told = read_json(checkpoint / "config.json").get("mm_vision_tower")
    folder = named
    if folder is None and isinstance(told, str):
        inside = (checkpoint / told).resolve().is_relative_to(checkpoint.resolve())
        folder = checkpoint / told if inside else None
    if folder is None or not (folder / "config.json").is_file():
        raise MvlmError(
            f"{checkpoint} leaves the configuration of its vision tower ({told}) to another folder"
            f"{f', and {named} holds none' if named else ''}: name that with --vision-tower"
        )
    return folder


def tower_config(folder: Path) -> CLIPVisionConfig:
    file = folder / "config.json"
    require_sizes(file, with_weights=False)  # which may be the checkpoint's
    with telling(file):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return _require_clip(file, getattr(config, "vision_config", config))


def trained_scales(told: dict[str, Any], config: MvlmConfig) -> tuple[int, ...] | None:
    """The scales that a checkpoint was trained at: M3's list, all patches for LLaVA, None for MQT, which drew them.

    Raises `MvlmError` for scales that the tower's grid does not allow.
    """
    if config.connector == "query":
        return None
    named = told.get(M3_SCALES, [config.grid_side**2])
    scales = parse_scales(named if isinstance(named, str) else ",".join(map(str, named)))
    require_scales(scales, pool_scales(config.grid_side))
    return scales


def _connector(told: dict[str, Any], tower: CLIPVisionConfig, query: QuerySizes | None) -> dict[str, Any]:
    if query is None:
        return {"connector": "pool", "num_visual_tokens": None if M3_SCALES in told else _grid_side(tower) ** 2}
    asked = told.get("num_visual_tokens")  # while MQT was trained, the name of a rule by which its code drew one
    return {
        "connector": "query", "num_queries": query.num_queries, "num_heads": query.num_heads,
        "num_visual_tokens": asked if isinstance(asked, int) else None,
    }  # fmt: skip


def _require_settings(file: Path, told: dict[str, Any], only: dict[str, Any]) -> None:
    wrong = [
        f"{key} is {told[key]!r} and not {value!r}" for key, value in only.items() if told.get(key, value) != value
    ]
    if wrong:
        raise MvlmError(f"{file} describes a model that is not read here: {'; '.join(wrong)}")


def _require_clip(file: Path, tower: Any) -> CLIPVisionConfig:
    if not isinstance(tower, CLIPVisionConfig):
        raise MvlmError(f"{file} describes a vision tower of type {tower.model_type}, and only CLIP's is read here")
    return tower


def _seen(file: Path, tower: CLIPVisionConfig, layer: Any) -> dict[str, Any]:
    """The tower, and what of it is read."""
    depth = tower.num_hidden_layers
    if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
        raise MvlmError(f"{file} reads layer {layer} of a vision tower of {depth} layers: name the right tower")
    if not isinstance(tower.image_size, int) or not isinstance(tower.patch_size, int):
        raise MvlmError(f"{file}: the vision tower's pictures or patches are not square, and only such are read here")
    return {"vision_config": tower, "grid_side": _grid_side(tower), "vision_feature_layer": layer}


def _grid_side(tower: CLIPVisionConfig) -> int:
    return tower.image_size // tower.patch_size  # type: ignore[operator]  # `_seen` lets no other through
