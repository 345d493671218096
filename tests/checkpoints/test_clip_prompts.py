"""What stands around the frames of a clip: as transformers' own processors of these families write it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.smolvlm import processing_smolvlm
from transformers.video_utils import VideoMetadata

from export.runtime.errors import MvlmError
from export.runtime.views.clip import Frames, Video
from export.runtime.views.clip_words import in_words
from export.runtime.views.spec import ViewSpec
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.cli import main
from mvlm_core.data.reading import read_rows
from mvlm_core.label.asking import Asking
from mvlm_core.modeling.visual_lengths import VisualLengths
from mvlm_core.train.step_pictures import StepPictures
from tests.support.families import Reference, make, picture

# As num2words spells them, the package that SmolVLM2's processor asks.
SPELLED = {
    1: "one", 2: "two", 5: "five", 13: "thirteen", 20: "twenty", 64: "sixty-four", 100: "one hundred",
    110: "one hundred and ten", 999: "nine hundred and ninety-nine", 1000: "one thousand", 1001: "one thousand and one",
    2300: "two thousand, three hundred", 30_045: "thirty thousand and forty-five",
}  # fmt: skip
QUESTION = "what moves?"


def test_numbers_are_spelled_as_num2words_spells_them():
    assert {number: in_words(number) for number in SPELLED} == SPELLED


@pytest.fixture(scope="module", params=["smolvlm", "internvl"])
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make(request.param, folder / "checkpoint")
    words = ["import", str(folder / "checkpoint"), "--out", str(folder / "run")]
    assert CliRunner().invoke(main, words).exit_code == 0
    return request.param, folder / "checkpoint", *load_run(folder / "run")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Three minutes at two frames a second."""
    file = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 2.0, (64, 48))
    for n in range(360):
        writer.write(np.full((48, 64, 3), n % 256, np.uint8))
    writer.release()
    return file


def theirs(kind: str, folder, processor, numbers: list[int], fps: float, duration: float | None) -> list[int]:
    """The ids that transformers makes of a clip, with its own template for it."""
    tokens, told = processor.image_processor.view_spec.grid_side**2, processor.tokenizer
    if kind == "internvl":
        own = SimpleNamespace(
            start_image_token="<img>", end_image_token="</img>", image_token=processor.image_token,
            image_seq_length=tokens,
        )  # fmt: skip
        shown = InternVLProcessor.replace_video_token(own, {"pixel_values_videos": [np.zeros(len(numbers))]}, 0)
        asked = processor.ask(QUESTION).replace(processor.image_token, shown)
    else:
        own = SimpleNamespace(
            fake_image_token="<fake_token_around_image>", global_image_token="<global-img>", image_token="<image>",
            image_seq_len=tokens,
        )  # fmt: skip
        meta = VideoMetadata(total_num_frames=360, fps=fps, duration=duration, frames_indices=numbers)
        held = {"pixel_values": np.zeros((1, len(numbers))), "video_metadata": [meta]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processing_smolvlm, "num2words", SPELLED.__getitem__)
            shown = processing_smolvlm.SmolVLMProcessor.replace_video_token(own, held, 0)
        content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
        asked = told.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=processing_smolvlm.DEFAULT_CHAT_TEMPLATE,
            tokenize=False, add_generation_prompt=True,
        ).replace("<video>", shown)  # fmt: skip
    return told(asked, add_special_tokens=False)["input_ids"]


def test_a_clip_of_a_file_is_told_as_transformers_tells_it(family, video):
    kind, folder, net, processor = family
    tokens = processor.image_processor.view_spec.grid_side**2
    for scale, times, numbers in (
        (f"{tokens}@5", None, [36, 108, 180, 252, 324]), (f"{tokens}", None, [180]),
        (f"{tokens}@native", (0.5, 61.0), [1, 122]),
    ):  # fmt: skip
        ours = processor(text=processor.ask(QUESTION), images=[Video(video, times)], scale=scale)
        assert ours["input_ids"][0].tolist() == theirs(kind, folder, processor, numbers, 2.0, 180.0)
        assert len(ours["pixel_values"]) == len(numbers)
        with torch.no_grad():
            logits = Reference(kind, folder).model(input_ids=ours["input_ids"], **_pixels(kind, ours)).logits
            assert torch.allclose(net(**ours).logits, logits, atol=1e-4)


def _pixels(kind: str, ours) -> dict:
    pixels = ours["pixel_values"]
    return {"pixel_values": pixels[None] if kind == "smolvlm" else pixels}


def test_listed_frames_are_told_as_transformers_tells_them(family):
    kind, folder, _, processor = family
    tokens = processor.image_processor.view_spec.grid_side**2
    frames = Frames(tuple(picture(60, 60, seed=n) for n in range(5)))
    ours = processor(text=processor.ask(QUESTION), images=[frames], scale=f"{tokens}@native")
    assert ours["input_ids"][0].tolist() == theirs(kind, folder, processor, list(range(5)), 24.0, None)


def test_labels_and_training_read_the_same_ids(family, video, tmp_path):
    """What stands for a clip is put into a row by itself there, and is the same; so is its length, told beforehand."""
    _, _, _, processor = family
    row = {
        "id": "1",
        "video": {"path": str(video), "times": [0.5, 61.0, 179.0]},
        "question": QUESTION,
        "answers": ["it"],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"split": "val"}))
    (read,) = read_rows(tmp_path / "rows.jsonl")
    before, after = Asking(processor).cut(read)
    pictures = StepPictures(processor, read.pictures)
    for scale in (1, "4@2", "1@native"):
        ours = processor(text=processor.ask(QUESTION), images=[read.image.read()], scale=scale)["input_ids"][0].tolist()
        assert [*before, *pictures.ids(0, scale), *after] == ours
        assert VisualLengths(processor).of(read.pictures, scale) == len(ours) - len(before) - len(after)


def test_runs_of_before_and_words_that_are_not_known(family):
    spec = family[3].image_processor.view_spec
    told = spec.to_json()
    assert ViewSpec.from_json(told) == spec
    del told["clip_words"]
    assert ViewSpec.from_json(told).clip_words == "none"
    with pytest.raises(MvlmError, match="clips are told by 'sung', and there are only none, numbered, timed"):
        ViewSpec.from_json(told | {"clip_words": "sung"})
