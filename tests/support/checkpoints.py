"""Tiny checkpoints as other code writes them: random weights of a stock LLaVA, renamed by hand into each layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.import_checkpoint import Imported, import_checkpoint
from tests.support.tiny import GRID_SIDE, SIZE_PX

ROWS = 260
PEERS = Path(__file__).parents[3] / "shared" / "peers"
FINEST = GRID_SIDE**2
PICTURES = {
    "crop_size": {"height": SIZE_PX, "width": SIZE_PX}, "do_center_crop": True, "do_resize": True, "resample": 3,
    "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"shortest_edge": SIZE_PX},
}  # fmt: skip
_TOWER = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": SIZE_PX, "patch_size": SIZE_PX // GRID_SIDE, "initializer_range": 0.3,
}  # fmt: skip
_TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.3, "rms_norm_eps": 1e-5, "rope_theta": 5000.0,
}  # fmt: skip
PROJECTOR, NORM = "model.mm_projector.0.weight", "model.layers.1.input_layernorm.weight"
Tensors = dict[str, torch.Tensor]


def read(checkpoint: Path, out: Path, vision_tower: Path | None = None, num_heads: int = 16) -> Imported:
    out.mkdir()
    return import_checkpoint(
        checkpoint, out, vision_tower=vision_tower, num_heads=num_heads, bar=lambda label, length: lambda steps: None
    )


def stock_llava(rows: int) -> LlavaForConditionalGeneration:
    """A LLaVA as stock transformers has it, whose placeholder is the last of its rows."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_TOWER), text_config=LlamaConfig(vocab_size=rows, **_TEXT),
        image_token_index=rows - 1, vision_feature_layer=-2,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config).eval()


def original_tensors(stock: LlavaForConditionalGeneration) -> tuple[Tensors, Tensors]:
    """The stock model's tensors as LLaVA's own code names them, and those of the vision tower as CLIP's does."""
    model, tower = {}, {}
    for name, tensor in stock.state_dict().items():
        if name.startswith("model.vision_tower."):
            tower["vision_model." + name.removeprefix("model.vision_tower.")] = tensor.clone()
            continue
        name = name.replace("model.language_model.", "model.")
        name = name.replace("model.multi_modal_projector.linear_1", "model.mm_projector.0")
        model[name.replace("model.multi_modal_projector.linear_2", "model.mm_projector.2")] = tensor.clone()
    return model, tower


def original_config(rows: int) -> dict:
    return {
        "model_type": "llava_llama", "vocab_size": rows, **_TEXT, "mm_hidden_size": _TOWER["hidden_size"],
        "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_tower": "clip",
        "image_aspect_ratio": "pad", "use_cache": False, "torch_dtype": "float32",
    }  # fmt: skip


def write_original(folder: Path, stock: LlavaForConditionalGeneration) -> Path:
    """LLaVA's own layout, the tower in the folder `clip` inside."""
    model, tower = original_tensors(stock)
    (folder / "clip").mkdir(parents=True)
    write(folder / "config.json", original_config(stock.config.text_config.vocab_size))
    save_file(model, folder / "model.safetensors")
    write(folder / "clip" / "config.json", {"model_type": "clip_vision_model", **_TOWER})
    write(folder / "clip" / "preprocessor_config.json", PICTURES)
    save_file(tower, folder / "clip" / "model.safetensors")
    return folder


def write_transformers(folder: Path, stock: LlavaForConditionalGeneration) -> Path:
    """The layout of transformers' LLaVA, with the files that this version of it writes."""
    stock.save_pretrained(folder)
    write(folder / "preprocessor_config.json", PICTURES)
    return folder


def write_shards(folder: Path, tensors: Tensors) -> None:
    """Two shards and an index in the place of the one file."""
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    places = {name: shard for shard, held in shards.items() for name in held}
    write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def write(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value))


def change(file: Path, **keys) -> None:
    """Set keys of a JSON file; None takes a key out."""
    value = json.loads(file.read_text()) | keys
    write(file, {key: kept for key, kept in value.items() if kept is not None})


def spoil(change_tensors: Callable[[Tensors], object]) -> Callable[[Path], None]:
    """What changes the tensors of a folder in place."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change_tensors(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def refused(checkpoint: Path, out: Path, message: str, vision_tower: Path | None = None) -> None:
    with pytest.raises(MvlmError, match=message):
        read(checkpoint, out, vision_tower)
