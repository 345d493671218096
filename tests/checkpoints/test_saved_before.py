"""A run and a bundle that version 0.1 wrote (connector `haar`, router of format 1) still open, and answer the same."""

import json
from pathlib import Path

import pytest
import torch

from export.runtime import Runtime
from mvlm_core.checkpoints.run_folder import load_run

SAVED = Path(__file__).parents[1] / "support" / "saved" / "v0.1"
TOLD = json.loads((SAVED / "answers.json").read_text())
NAMED = {int(scale): ids for scale, ids in TOLD["answers"].items() if scale != "auto"}


@pytest.fixture(scope="module")
def view():
    return Runtime.load(SAVED / "bundle", threads=1).look(SAVED / "picture.png")


@pytest.mark.parametrize("scale", NAMED)
def test_the_bundle_answers_as_it_did(view, scale):
    assert list(view.ask(TOLD["question"], scale, max_new_tokens=6).token_ids) == NAMED[scale]


def test_its_router_chooses_as_it_did(view):
    choice = view.choose(TOLD["question"], price=0.05)
    assert [choice.scale, round(choice.probabilities[9], 5)] == TOLD["answers"]["auto"]


def test_the_run_answers_as_its_bundle():
    model, processor = load_run(SAVED / "run")
    assert model.config.connector == "nested_pool"
    for scale, ids in NAMED.items():
        text = processor.ask(TOLD["question"])
        batch = processor(images=[SAVED / "picture.png"], text=[text], num_visual_tokens=scale)
        with torch.no_grad():
            written = model.generate(**batch, max_new_tokens=6, do_sample=False)[0, batch["input_ids"].shape[1] :]
        assert written.tolist() == ids
