"""Families that people deploy: imported, they are what transformers' own classes are; pooled, the average of that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.family import _most_tiles
from mvlm_core.checkpoints.import_checkpoint import import_checkpoint
from mvlm_core.checkpoints.run_folder import load_run
from tests.support.families import KINDS, QUESTION, Reference, make, picture

SIZES = [(200, 90), (60, 60), (100, 240), (640, 10), (10, 640), (33, 500)]
ODD = {
    "grey": picture(80, 70).convert("L"), "one pixel": Image.new("RGB", (1, 1), (3, 200, 7)),
    "see-through": Image.merge("RGBA", [*picture(90, 60).split(), Image.linear_gradient("L").resize((90, 60))]),
}  # fmt: skip


class Family:
    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, make(kind, folder / "checkpoint")
        self.reference = Reference(kind, self.folder)
        self.imported = read(self.folder, folder / "run")
        self.model, self.processor = load_run(folder / "run")

    def inputs(self, image: Image.Image, scale: Any) -> Any:
        return self.processor(text=self.processor.ask(QUESTION), images=[image], scale=scale)


def read(checkpoint: Path, run: Path):
    run.mkdir()
    return import_checkpoint(checkpoint, run, vision_tower=None, num_heads=16, bar=lambda *_: lambda _: None)


@pytest.fixture(scope="module", params=KINDS)
def family(request, tmp_path_factory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


@torch.no_grad()
@pytest.mark.parametrize("image", [*SIZES, *ODD])
def test_native_is_what_transformers_computes(family, image):
    shown = ODD[image] if image in ODD else picture(*image)
    theirs, ours = family.reference.see(shown), family.inputs(shown, "native")
    assert ours["input_ids"][0].tolist() == theirs.ids.tolist()
    assert torch.equal(ours["pixel_values"], theirs.pixels)
    assert torch.allclose(family.model(**ours).logits[0, -1], theirs.logits, atol=1e-4)
    answer = family.model.generate(**ours, do_sample=False, max_new_tokens=6)
    assert answer[0, ours["input_ids"].shape[1] :].tolist() == theirs.answer.tolist()


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES[:4])
def test_a_pooled_scale_is_the_average_of_each_views_grid(family, size):
    image, spec = picture(*size), family.processor.image_processor.view_spec
    native, pooled = family.inputs(image, "native"), family.inputs(image, "4@native")
    assert torch.equal(native["pixel_values"], pooled["pixel_values"])
    grid = family.reference.projected(pooled["pixel_values"])
    grid = grid.unflatten(1, (spec.grid_side,) * 2).permute(0, 3, 1, 2)  # (views, D, G, G)
    wanted = F.avg_pool2d(grid, spec.grid_side // 2).flatten(2).transpose(1, 2)  # (views, 4, D)
    values = family.model.encode_images(pooled["pixel_values"])
    assert torch.allclose(family.model.connector.tokens(values, 4), wanted, atol=1e-5)

    embeds = family.model._look_up(pooled["input_ids"])
    places = pooled["input_ids"] == family.processor.image_token_id
    shown = _packed_by_transformers(family, wanted, image) if "llava" in family.kind else wanted.flatten(0, 1)
    embeds = embeds.masked_scatter(places[..., None], shown)
    assert int(places.sum()) == len(shown)
    by_hand = family.model(inputs_embeds=embeds, attention_mask=pooled["attention_mask"]).logits
    assert torch.allclose(family.model(**pooled).logits, by_hand, atol=1e-4)


def _packed_by_transformers(family: Family, tokens: torch.Tensor, image: Image.Image) -> torch.Tensor:
    """transformers' own stitching, told that a view has as many patches as it has tokens."""
    inner = family.reference.model.model
    vision, side = inner.config.vision_config, round(tokens.shape[1] ** 0.5)
    told = {"vision_aspect_ratio": "anyres_max_4"}
    if family.kind == "llava_next":
        told = {"vision_feature_select_strategy": "default"}
    patch_size, vision.patch_size = vision.patch_size, vision.image_size // side
    try:
        sizes = [[image.height, image.width]]
        return inner.pack_image_features([tokens], sizes, image_newline=inner.image_newline, **told)[0][0]
    finally:
        vision.patch_size = patch_size


@torch.no_grad()
def test_beams_see_the_pictures_of_their_own_rows(family):
    images, scales = [picture(200, 90), picture(60, 60)], ["native", "4@4"]
    told = {"do_sample": False, "num_beams": 3, "max_new_tokens": 5}
    text = family.processor.ask(QUESTION)
    together = family.processor(text=[text] * 2, images=images, scale=scales)
    rows = family.model.generate(**together, **told)[:, together["input_ids"].shape[1] :].tolist()
    for row, image, scale in zip(rows, images, scales, strict=True):
        alone = family.inputs(image, scale)
        values = family.model.encode_images(alone["pixel_values"])
        visual = family.model.visual_tokens(values, range(len(values)), alone["num_visual_tokens"].tolist())
        if "stitch_sources" in alone:
            visual = family.model.stitched(visual, alone["stitch_sources"], alone["stitch_weights"])
        embeds = family.model.placed(alone["input_ids"], visual)  # which beams repeat as any row of numbers
        by_hand = family.model.generate(inputs_embeds=embeds, attention_mask=alone["attention_mask"], **told)
        assert row[: by_hand.shape[1]] == by_hand[0].tolist()


@torch.no_grad()
def test_a_placeholder_that_was_generated_is_read_as_it_stands(family):
    ids = torch.tensor([[5, family.processor.image_token_id, 7]])
    assert torch.allclose(family.model(input_ids=ids).logits, family.reference.model(input_ids=ids).logits, atol=1e-4)


@torch.no_grad()
def test_the_overview_alone_has_no_tiles(family):
    image = picture(200, 90)
    alone, native = family.inputs(image, 4), family.inputs(image, "native")
    assert len(alone["pixel_values"]) == 1
    which = 0 if "llava" in family.kind else -1
    assert torch.equal(alone["pixel_values"][0], native["pixel_values"][which])
    newline = "llava" in family.kind
    assert int((alone["input_ids"] == family.processor.image_token_id).sum()) == 4 + newline
    assert family.model(**alone).logits.isfinite().all()


@torch.no_grad()
def test_rows_of_several_scales_are_as_one_by_one(family):
    images, scales = [picture(200, 90), picture(60, 60), picture(100, 240)], [4, "native", "1@4"]
    text = family.processor.ask(QUESTION)
    together = family.processor(text=[text] * 3, images=images, scale=scales)
    logits = family.model(**together).logits[:, -1]
    for row, (image, scale) in enumerate(zip(images, scales, strict=True)):
        assert torch.allclose(family.model(**family.inputs(image, scale)).logits[0, -1], logits[row], atol=1e-4)


def test_a_scale_that_the_grid_does_not_pool_to_is_refused(family):
    with pytest.raises(MvlmError, match="cannot show a picture in 25 tokens: it allows"):
        family.model(**family.inputs(picture(60, 60), "25"))


def test_every_tensor_is_accounted_for(family):
    assert "tensors, every one accounted for" in family.imported.notes[0]
    assert family.imported.has_tokenizer
    assert family.processor.default_scale == "native"


def spoil_json(name: str, **change: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        told = json.loads((folder / name).read_text())
        for key, value in change.items():
            inner, _, last = key.rpartition("__")
            (told[inner] if inner else told)[last] = value
        (folder / name).write_text(json.dumps(told))

    return spoil


def spoil_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return spoil


PROJECTOR = "multi_modal_projector.linear_1.weight"
CONFIG, PICTURES, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
WRONG = {
    "a projector of more layers": (
        "llava_next", spoil_tensors(lambda t: t.update({"multi_modal_projector.linear_3.weight": torch.ones(2, 2)})),
        "linear_3.weight is left over",
    ),
    "a tensor that is missing": ("internvl", spoil_tensors(lambda t: t.pop(PROJECTOR)), "linear_1.weight is missing"),
    "a tensor of another shape": (
        "llava_next", spoil_tensors(lambda t: t.update({PROJECTOR: torch.ones(3, 3)})), r"shape \(3, 3\)",
    ),
    "a tensor that is not finite": (
        "llava_next", spoil_tensors(lambda t: t[PROJECTOR].fill_(np.nan)), "NaN or infinite",
    ),
    "another activation": ("llava_next", spoil_json(CONFIG, projector_hidden_act="bent"), "'bent' is none that"),
    "several layers of the tower": (
        "llava_onevision", spoil_json(CONFIG, vision_feature_layer=[-2, -1]), "one layer of the tower is read",
    ),
    "the class token among the patches": (
        "llava_next", spoil_json(CONFIG, vision_feature_select_strategy="full"), "is 'full' and not 'default'",
    ),
    "another language model": (
        "smolvlm", spoil_json(CONFIG, text_config__model_type="gpt2"), "the language model is a gpt2",
    ),
    "a sliding window": (
        "llava_next", spoil_json(CONFIG, text_config__model_type="mistral", text_config__sliding_window=64),
        "sees 64 of its 4096 positions",
    ),
    "another ratio": ("internvl", spoil_json(CONFIG, downsample_ratio=0.3), "downsample_ratio is 0.3"),
    "cells that do not fill the grid": ("smolvlm", spoil_json(CONFIG, scale_factor=3), "no cells of 3 x 3"),
    "a token that is not there": ("smolvlm", spoil_json(CONFIG, image_token_id=9999), "has no token 9999"),
    "tiles of another size": ("smolvlm", spoil_json(PICTURES, max_image_size={"longest_edge": 32}), "max_image_size"),
    "another kind of size": ("smolvlm", spoil_json(PICTURES, size={"height": 64, "width": 64}), "and no longest_edge"),
    "pixels as they are": ("internvl", spoil_json(PICTURES, do_normalize=False), "do_normalize is False"),
    "an unknown setting": ("internvl", spoil_json(PICTURES, sharpen=3), "sharpen is 3"),
    "views of two sizes": (
        "llava_next", spoil_json(PICTURES, crop_size={"height": 40, "width": 40}), "it makes views of",
    ),
    "other pinpoints": (
        "llava_next", spoil_json(PICTURES, image_grid_pinpoints=[[48, 48]]), "image_grid_pinpoints is",
    ),
    "pinpoints of half tiles": (
        "llava_next",
        lambda folder: [spoil_json(name, image_grid_pinpoints=[[48, 72]])(folder) for name in (CONFIG, PICTURES)],
        "no tiles of 48 pixels fill the pinpoint 48 x 72",
    ),
    "another number of tokens": ("internvl", spoil_json(PROCESSOR, image_seq_length=64), "image_seq_length is 64"),
    "another processor's setting": ("internvl", spoil_json(PROCESSOR, dance=True), "dance is True"),
    "no marks": ("internvl", spoil_json("tokenizer_config.json", start_image_token=None), "names no start_image_token"),
    "no template": ("smolvlm", lambda folder: (folder / "chat_template.jinja").unlink(), "holds no chat template"),
    "a template without a picture": (
        "smolvlm", lambda folder: (folder / "chat_template.jinja").write_text("a"), "does not show a picture as",
    ),
    "no settings of pictures": ("smolvlm", lambda folder: (folder / PICTURES).unlink(), "image processor of .* can"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_done_is_refused_by_name(tmp_path, case):
    kind, spoil, message = WRONG[case]
    checkpoint = make(kind, tmp_path / "checkpoint")
    spoil(checkpoint)
    with pytest.raises(MvlmError, match=message):
        read(checkpoint, tmp_path / "run")


def test_a_vision_tower_besides_is_refused(tmp_path):
    checkpoint = make("smolvlm", tmp_path / "checkpoint")
    with pytest.raises(MvlmError, match="leave --vision-tower away"):
        import_checkpoint(checkpoint, tmp_path, vision_tower=tmp_path, num_heads=16, bar=lambda *_: lambda _: None)


@pytest.mark.parametrize("aspect", ["square", "anyres", "anyres_max_x"])
def test_another_aspect_is_refused(aspect):
    with pytest.raises(MvlmError, match="only anyres_max_ and a number"):
        _most_tiles(aspect)
