"""A run in transformers' own pipeline, which names no scale: the run's default is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import pipeline

from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.train.recipe import show_by_default
from tests.support.tiny import QUESTIONS, drawn_picture, tiny_model, tiny_processor


@pytest.fixture
def run(tmp_path) -> Path:
    processor = tiny_processor()
    model = tiny_model(processor=processor)
    show_by_default(model, processor, 9)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path


def messages(question: str) -> list[dict]:
    content = [{"type": "image", "image": drawn_picture()}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def test_a_pipeline_shows_the_default_scale(run):
    ask = pipeline("image-text-to-text", model=str(run))
    said = ask(text=messages(QUESTIONS[0]), max_new_tokens=4, do_sample=False, return_full_text=False)
    model, processor = load_run(run)
    batch = processor(text=processor.ask(QUESTIONS[0]), images=drawn_picture(), scale=9)
    ids = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert said[0]["generated_text"] == processor.tokenizer.decode(ids[0], skip_special_tokens=True)


def test_the_default_gives_way_to_what_is_named(run):
    model, processor = load_run(run)
    text = processor.ask(QUESTIONS[0])
    shown = {scale: processor(text=text, images=drawn_picture(), scale=scale) for scale in (None, 9, 36)}
    assert torch.equal(shown[None]["input_ids"], shown[9]["input_ids"])
    assert int((shown[36]["input_ids"] == processor.image_token_id).sum()) == 36
    by_default = dict(shown[None])
    del by_default["num_visual_tokens"]
    assert torch.equal(model(**by_default).logits, model(**shown[9]).logits)


def test_a_run_of_before_has_none_and_says_so(run):
    told = json.loads((run / "processor_config.json").read_text())
    assert told.pop("default_scale") == 9
    (run / "processor_config.json").write_text(json.dumps(told))
    _, processor = load_run(run)
    with pytest.raises(MvlmError, match="no scale was named, and this run has no default"):
        processor(text=processor.ask(QUESTIONS[0]), images=drawn_picture())
    assert processor(text="words alone")["input_ids"].shape[0] == 1


def test_views_say_their_tokens_with_each_picture():
    processor = tiny_processor()
    model = tiny_model(processor=processor)
    show_by_default(model, processor, "9@4")
    assert (processor.default_scale, model.config.num_visual_tokens) == ("9@4", None)
