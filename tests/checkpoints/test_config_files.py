"""Configurations of checkpoints: what describes another model than ours is refused with the setting named."""

import shutil

import pytest
from transformers import CLIPVisionConfig, SiglipVisionConfig

from tests.support.checkpoints import ROWS, change, refused, stock_llava, write_original, write_transformers
from tests.support.tiny import SIZE_PX


@pytest.fixture(scope="module")
def stock():
    return stock_llava(ROWS)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mm_hidden_size": "1" * 5000}, "says no whole number as mm_hidden_size"),
        ({"mm_hidden_size": 24}, "wants a vision tower of width 24 .* the tower's is 16"),
        ({"mm_vision_select_layer": -7}, "reads layer -7 of a vision tower of 3 layers"),
        ({"mm_vision_select_feature": "cls_patch", "mm_patch_merge_type": "spatial"}, "'cls_patch' .*; mm_patch_merge"),
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'"),
        ({"matryoshka_vis_token_scale": [1, 5]}, "cannot show a picture in 5 tokens"),
        ({"num_attention_heads": 5}, "does not describe a model"),
        (
            {"mm_vision_tower": "openai/clip"},
            r"leaves the configuration of its vision tower \(openai/clip\) to another",
        ),
        ({"mm_vision_tower": "../elsewhere"}, "name that with --vision-tower"),
        ({"image_aspect_ratio": "anyres"}, "cut into several"),
        ({"vocab_size": 9}, r"embed_tokens\.weight has shape \(260, 32\) instead of \(9, 32\)"),
    ],
)
def test_configurations_that_are_refused(tmp_path, stock, keys, message):
    folder = write_original(tmp_path / "checkpoint", stock)
    shutil.copytree(folder / "clip", tmp_path / "elsewhere")
    change(folder / "config.json", **keys)
    refused(folder, tmp_path / "run", message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SiglipVisionConfig(), "a vision tower of type siglip_vision_model, and only CLIP's"),
        (CLIPVisionConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=[9, 8]), "not square"),
        (CLIPVisionConfig(hidden_size=24, num_attention_heads=2), "the tower's is 24"),
        (
            CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                             image_size=48, patch_size=8),
            "become 96 pixels wide, and the vision tower takes 48",
        ),
    ],
)  # fmt: skip
def test_a_tower_that_does_not_fit(tmp_path, stock, config, message):
    folder = write_original(tmp_path / "checkpoint", stock)
    config.save_pretrained(tmp_path / "tower")
    shutil.copy(folder / "clip" / "preprocessor_config.json", tmp_path / "tower")
    shutil.copy(folder / "clip" / "model.safetensors", tmp_path / "tower")
    refused(folder, tmp_path / "run", message, vision_tower=tmp_path / "tower")


def test_a_tower_of_another_grid(tmp_path, stock):
    folder = write_original(tmp_path / "checkpoint", stock)
    change(folder / "clip" / "config.json", image_size=SIZE_PX * 2)
    half = {"height": SIZE_PX * 2, "width": SIZE_PX * 2}
    change(folder / "clip" / "preprocessor_config.json", crop_size=half, size={"shortest_edge": SIZE_PX * 2})
    refused(folder, tmp_path / "run", r"position_embedding\.weight has shape \(145, 16\) instead of \(577, 16\)")


def test_the_layout_of_transformers_holds_its_tower(tmp_path, stock):
    folder = write_transformers(tmp_path / "checkpoint", stock)
    refused(folder, tmp_path / "run", "leave --vision-tower away", vision_tower=tmp_path)
    change(folder / "config.json", projector_hidden_act="relu", vision_feature_select_strategy="full")
    refused(folder, tmp_path / "another", "'full' and not 'default'; projector_hidden_act is 'relu'")
