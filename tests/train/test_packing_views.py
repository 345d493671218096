"""Packed rows with tiles, marks and newlines: as one by one, and each view encoded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.runtime.errors import MvlmError
from export.runtime.views import Scale
from mvlm_core.checkpoints.import_checkpoint import import_checkpoint
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.data.pictures import PictureFile
from mvlm_core.data.row import PicturePlace, Row, Turn
from mvlm_core.modeling.losses import IGNORED_LABEL
from mvlm_core.modeling.processing import turn
from mvlm_core.train.packing import Packer, block_mask
from mvlm_core.train.plan import Group, Planned
from tests.support.families import KINDS, make, picture

QUESTIONS = [("what colour is it?", "red"), ("how many dots?", "three <image> dots")]
SCALES = (4, "1@4", "16@4", "4@native")


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make(request.param, folder / "checkpoint")
    (folder / "run").mkdir()
    import_checkpoint(checkpoint, folder / "run", vision_tower=None, num_heads=16, bar=lambda *_: lambda _: None)
    model, processor = load_run(folder / "run")
    sources = []
    for n, size in enumerate([(200, 140), (60, 50)]):
        picture(*size, seed=n).save(folder / f"{n}.png")
        sources.append(PictureFile(folder / f"{n}.png"))
    return model, processor, sources


def scales_of(processor) -> tuple:
    """Those that the grid pools to."""
    pools = processor.image_processor.view_spec.grid_side % 4 == 0
    return tuple(scale for scale in SCALES if pools or "16" not in str(scale))


def planned(source, scales) -> Planned:
    rows = tuple(
        Row(f"{n}", (source,), (Turn((PicturePlace(0), question), (answer,)),), None, "g", "train")
        for n, (question, answer) in enumerate(QUESTIONS)
    )
    return Planned(Group((source,), rows), scales, np.arange(len(rows)), False)


def test_packed_is_as_one_by_one(run):
    model, processor, sources = run
    scales = scales_of(processor)
    batch = Packer(processor, None, max_tokens=None)([planned(source, scales) for source in sources])
    mask = block_mask(batch.pop("segments"), batch.pop("blocks"))
    supervised = int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
    packed = model(**batch, attention_mask=mask, num_items_in_batch=supervised).loss

    nats, count = 0.0, 0
    for source in sources:
        for scale in scales:
            for question, answer in QUESTIONS:
                text = processor.render(turn(question, answer))
                inputs = processor(text=text, images=[str(source.path)], scale=scale)
                prompt = processor(text=processor.ask(question), images=[str(source.path)], scale=scale)
                asked = prompt["input_ids"].shape[1]
                labels = inputs["input_ids"].clone()
                labels[:, :asked] = IGNORED_LABEL
                end = (labels[0] == processor.tokenizer.eos_token_id).nonzero()[-1, 0] + 1
                labels[:, end:] = IGNORED_LABEL
                learned = int((labels[:, 1:] != IGNORED_LABEL).sum())
                nats, count = nats + model(**inputs, labels=labels, num_items_in_batch=1).loss, count + learned
    assert count == supervised
    assert torch.allclose(packed, nats / count, rtol=1e-4)


def test_each_view_is_encoded_once(run):
    _, processor, sources = run
    images, scales = processor.image_processor, scales_of(processor)
    batch = Packer(processor, None, max_tokens=None)([planned(source, scales) for source in sources])
    wanted = 0
    for source in sources:
        opened = images.open(source.path)
        shown = [images.shown((opened.height, opened.width), s) for s in map(Scale.parse, scales)]
        wanted += len({view for one in shown for view in one.views})
    assert len(batch["pixel_values"]) == wanted
    assert len(batch["picture_of_run"]) > wanted


def test_the_gradient_reaches_every_part(run):
    model, processor, sources = run
    batch = Packer(processor, None, max_tokens=None)([planned(sources[0], ("4@native",))])
    mask = block_mask(batch.pop("segments"), batch.pop("blocks"))
    model.zero_grad()
    model(**batch, attention_mask=mask).loss.backward()
    parts = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert parts == {"vision_tower", "connector", "language_model"}
    newline = model.connector.newline
    assert newline is None or newline.grad.abs().sum() > 0
    model.zero_grad()


def test_what_does_not_fit_is_told_with_marks_and_tiles(run):
    _, processor, sources = run
    with pytest.raises(MvlmError, match=r"id 0: \d+ tokens at scale 4@native do not fit into 9 without leaving out a"):
        Packer(processor, None, max_tokens=9)([planned(sources[0], (4, "4@native"))])
