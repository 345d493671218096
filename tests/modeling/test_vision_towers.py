"""What is worked out of a tower's configuration, against the tower itself."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from mvlm_core.backbones.load import vision_config
from mvlm_core.modeling.vision_towers import leading_tokens, patch_features, tower_grid_side, vision_width
from tests.support.backbones import TOWERS


@pytest.mark.parametrize("size_px", [96, 100, 64])
@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
def test_patches_of_towers_of_any_size(kind, size_px):
    assert_patches(vision_config(TOWERS[kind][1]), size_px)


@pytest.mark.parametrize("first_stage", [False, True])
@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("size_px", [96, 100, 97])
def test_patches_of_a_resnet(size_px, stages, first_stage):
    sizes = {"hidden_sizes": [8] * stages, "depths": [1] * stages, "downsample_in_first_stage": first_stage}
    assert_patches(AutoConfig.for_model(**TOWERS["resnet"][1] | sizes), size_px)


@pytest.mark.parametrize("size_px", [96, 100])
@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model"])
def test_patches_of_towers_of_one_size(kind, size_px):
    told = {"clip_vision_model": TOWERS["clip"][1]["vision_config"], "siglip_vision_model": TOWERS["siglip"][1]}[kind]
    assert_patches(vision_config({**told, "model_type": kind, "image_size": size_px}), size_px)


@torch.inference_mode()
def assert_patches(config, size_px: int) -> None:
    """The class token and the registers go: what is left differs from patch to patch with the picture only there."""
    tower = AutoModel.from_config(config).eval()
    side = tower_grid_side(config, size_px)
    features = tower(torch.rand(1, 3, size_px, size_px)).last_hidden_state
    patches = patch_features(features, side, leading_tokens(config))
    assert patches.shape == (1, side**2, vision_width(config))
    if features.ndim == 3:
        assert torch.equal(patches, features[:, -(side**2) :])
