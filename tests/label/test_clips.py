"""Clips through model, training and sweep: a clip at a scale is its frames, one picture behind another."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from export.runtime.errors import MvlmError
from export.runtime.views.clip import Frames
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.modeling.visual_lengths import VisualLengths
from tests.support.families import make, picture
from tests.support.tiny import SMALL_MODEL, drawn_picture, metrics, tiny_model, tiny_processor


def as_pictures(processor, frames, tokens, question="what?"):
    """The frames as pictures of their own, with nothing between them."""
    text = processor.ask(question)
    return processor(
        text=text.replace(processor.image_token, processor.image_token * len(frames)), images=list(frames), scale=tokens
    )


def without_words(processor) -> None:
    """As a run of before the families' own words: tests/checkpoints/test_clip_prompts.py has those."""
    if processor.image_processor.views:
        processor.image_processor.views.pop("clip_words", None)


@pytest.fixture(scope="module", params=["tiny", "smolvlm", "internvl", "llava_next"])
def model(request, tmp_path_factory):
    if request.param == "tiny":
        processor = tiny_processor()
        return tiny_model(processor=processor), processor
    from click.testing import CliRunner

    from mvlm_core.cli import main

    folder = tmp_path_factory.mktemp(request.param)
    words = ["import", str(make(request.param, folder / "checkpoint")), "--out", str(folder / "run")]
    assert CliRunner().invoke(main, words).exit_code == 0
    return load_run(folder / "run")


@torch.no_grad()
def test_a_clip_is_its_frames_one_behind_another(model):
    net, processor = model
    without_words(processor)
    frames = tuple(picture(90, 60, seed=n) for n in range(5))
    for word, numbers in (("4", [2]), ("4@2", [1, 3]), ("1@9", [0, 1, 2, 3, 4])):
        ours = processor(text=processor.ask("what?"), images=[Frames(frames)], scale=word)
        theirs = as_pictures(processor, [frames[n] for n in numbers], int(word.partition("@")[0]))
        assert torch.equal(ours["input_ids"], theirs["input_ids"])
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
        assert torch.equal(net(**ours).logits, net(**theirs).logits)


def test_the_tokens_are_known_from_the_number_of_frames(model):
    _, processor = model
    without_words(processor)

    class Clip:
        frames = 5

        def read(self):
            raise AssertionError("not to be opened")

    frames = tuple(picture(90, 60, seed=n) for n in range(5))
    for word in ("1", "4@2", "1@native"):
        inputs = processor(text=processor.ask("what?"), images=[Frames(frames)], scale=word)
        alone = len(processor.tokenizer(processor.ask("what?"), add_special_tokens=False)["input_ids"])
        assert VisualLengths(processor).of([Clip()], word) == inputs["input_ids"].shape[1] - alone + 1


def test_frames_of_a_model_without_tokens_of_its_own():
    processor = tiny_processor()
    with pytest.raises(MvlmError, match="view of this model has no tokens of its own, and native asks for them"):
        processor(text=processor.ask("what?"), images=[Frames((drawn_picture(0),))], scale="native")


def test_training_and_labels(scenes, tmp_path, mvlm):
    told = []
    for clip in range(6):
        names = [f"{clip}-{n}.png" for n in range(3 + clip % 2)]
        for n, name in enumerate(names):
            drawn_picture(10 * clip + n).save(tmp_path / name)
        split = ("train", "val", "test")[clip // 2]
        told += [
            {"id": f"{clip} {q}", "video": names, "question": q, "answers": ["red"], "split": split}
            for q in ("what colour?", "how many?")
        ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, told)))
    config = yaml.safe_load((scenes.parent / "train.yaml").read_text())
    stage = {"name": "answers", "steps": 2, "pictures": 2, "show": [4, "4@2"], "lr": 1e-3}
    config |= {"rows": "rows.jsonl", "scales": [4, "4@2", "1@8"], "stages": [stage]}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    small = [setting for setting in SMALL_MODEL if not setting.startswith("stages")]
    result = mvlm("train", tmp_path / "train.yaml", *small, "--out", tmp_path / "run")
    assert result.exit_code == 0, (result.output, result.exc_info)
    assert {scale for line in metrics(tmp_path / "run") for scale in line.get("num_visual_tokens", [])} == {4, "4@2"}

    result = mvlm("label", tmp_path / "run", "--rows", tmp_path / "rows.jsonl", "--metric", "exact",
                  "--max-new-tokens", 3, "--out", tmp_path / "labels")  # fmt: skip
    assert result.exit_code == 0, (result.output, result.exc_info)
    model, processor = load_run(tmp_path / "run")
    lines = pq.read_table(tmp_path / "labels" / "labels.parquet").to_pylist()
    assert len(lines) == 8 * 3
    for line in lines:
        frames = Frames(tuple(tmp_path / name for name in next(t["video"] for t in told if t["id"] == line["id"])))
        inputs = processor(text=processor.ask(line["id"][2:]), images=[frames], scale=line["scale"])
        wrote = model.generate(
            **inputs, do_sample=False, max_new_tokens=3, return_dict_in_generate=True, output_scores=True
        )
        likely = wrote.scores[0].softmax(dim=-1).topk(2).values[0]
        assert line["margin"] == pytest.approx(float(likely[0] - likely[1]), abs=1e-5)
        shown = {"4": 1, "4@2": 2, "1@8": frames.count}[line["scale"]]
        assert line["num_visual_tokens"] == shown * (1 if line["scale"] == "1@8" else 4)
        # Two frames are 0 and 2 of three, or 1 and 3 of four: the middle one is not among them.
        assert line["tiles"] == {"4": 0, "4@2": 2, "1@8": frames.count - 1}[line["scale"]]
    facts = json.loads((tmp_path / "labels" / "labels.json").read_text())
    assert facts["tile_tokens"] > 0

    rows = [told[-1] | {"video": told[-1]["video"][:1] * 30}]
    (tmp_path / "long.jsonl").write_text(json.dumps(rows[0]))
    result = mvlm("label", tmp_path / "run", "--rows", tmp_path / "long.jsonl", "--scales", "4,36@native",
                  "--splits", rows[0]["split"], "--metric", "exact", "--out", tmp_path / "long")  # fmt: skip
    assert result.exit_code == 2
    assert "1 rows at scale 36@native" in result.output
    assert "positions of the language model" in result.output
    (fits,) = re.findall(r"id .*: \d+ tokens; at 36@(\d+) it fits", result.output)
    (needed,) = re.findall(r"id .*: (\d+) tokens", result.output)
    positions = model.config.text_config.max_position_embeddings
    frames = Frames(tuple(tmp_path / name for name in rows[0]["video"]))
    lengths = [
        processor(text=processor.ask(rows[0]["question"]), images=[frames], scale=f"36@{n}")["input_ids"].shape[1]
        for n in (int(fits), int(fits) + 1, 30)
    ]
    answer = int(needed) - lengths[2]
    assert lengths[0] + answer <= positions < lengths[1] + answer
