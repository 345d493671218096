"""Words and pictures of imported checkpoints: <image>, LLaVA-1.5's prompt, and how pictures are made square."""

import json
import sys

import pytest
import torch

from benchmarks.tiny_models import byte_words
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.modeling.chat_templates import TEMPLATES
from mvlm_core.modeling.processing import prompt_of, turn
from tests.support.checkpoints import (
    FINEST,
    PICTURES,
    ROWS,
    change,
    read,
    refused,
    stock_llava,
    write,
    write_original,
    write_transformers,
)
from tests.support.tiny import SIZE_PX, drawn_picture


@pytest.fixture(scope="module")
def stock():
    return stock_llava(ROWS)


@pytest.fixture
def spoken(tmp_path):
    """A checkpoint with a tokenizer that knows no <image>, and as many rows as that has tokens."""
    words = byte_words()
    folder = write_original(tmp_path / "checkpoint", stock_llava(len(words)))
    words.save_pretrained(folder)
    return folder


@torch.inference_mode()
def test_the_tokenizer_gains_an_image_token_and_the_table_a_row(spoken, tmp_path):
    imported = read(spoken, tmp_path / "run")
    rows = len(byte_words())
    assert any(f"grew from {rows} to {rows + 1} rows" in note for note in imported.notes)
    assert any("the tokenizer pads with <unk>" in note for note in imported.notes)
    model, processor = load_run(tmp_path / "run")
    assert processor.image_token_id == model.config.image_token_id == rows
    batch = processor(images=drawn_picture(), text=processor.ask("why?"), num_visual_tokens=FINEST)
    logits = model(**batch).logits
    torch.testing.assert_close(logits[..., rows], logits[..., :rows].mean(dim=-1), atol=1e-4, rtol=1e-4)
    assert logits.argmax(-1).max() < rows


def test_the_prompt_is_llavas(spoken, tmp_path):
    """llava/conversation.py, `v1`: the system's line, and roles and separators of style TWO."""
    read(spoken, tmp_path / "run")
    _, processor = load_run(tmp_path / "run")
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,"
        " and polite answers to the user's questions."
    )
    assert processor.ask("why?") == f"<s>{system} USER: <image>\nwhy? ASSISTANT:"
    messages = [*turn("why?", "so"), *turn("and?", "no", with_picture=False)]
    assert (
        processor.render(messages) == f"<s>{system} USER: <image>\nwhy? ASSISTANT: so</s>USER: and? ASSISTANT: no</s>"
    )
    encoded = processor.encode(messages)
    supervised = [i for i, is_answer in zip(encoded.ids, encoded.supervised, strict=True) if is_answer]
    assert processor.tokenizer.decode(supervised) == " so</s> no</s>"
    assert prompt_of(processor).ids("why?", 4, processor.image_token_id).count(processor.image_token_id) == 4


def test_a_checkpoints_own_marked_template_is_kept(spoken, tmp_path):
    template = TEMPLATES["vicuna"].text.replace("A chat", "One chat")
    (spoken / "chat_template.jinja").write_text(template)
    read(spoken, tmp_path / "run")
    assert load_run(tmp_path / "run")[1].ask("?").startswith("<s>One chat")


def test_an_own_template_that_marks_nothing_is_llavas(spoken, tmp_path):
    (spoken / "chat_template.jinja").write_text(TEMPLATES["vicuna"].text.replace("generation %}", "generation_ %}"))
    read(spoken, tmp_path / "run")
    assert load_run(tmp_path / "run")[1].chat_template == TEMPLATES["vicuna"].text


@pytest.mark.parametrize(
    ("pictures", "aspect", "fit"),
    [
        ({}, "pad", "pad"),
        ({}, None, "crop"),
        ({"do_pad": True}, None, "pad"),
        ({"do_center_crop": False, "size": {"height": SIZE_PX, "width": SIZE_PX}}, "square", "stretch"),
    ],
)
def test_how_pictures_are_made_square(tmp_path, stock, pictures, aspect, fit):
    folder = write_original(tmp_path / "checkpoint", stock)
    change(folder / "config.json", image_aspect_ratio=aspect)
    (folder / "clip" / "preprocessor_config.json").unlink()
    write(folder / "processor_config.json", {"image_processor": PICTURES | pictures})
    read(folder, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert (told["fit"], told["size_px"], told["mean"]) == (fit, SIZE_PX, PICTURES["image_mean"])


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (
            {"resample": 1, "do_normalize": False},
            "do_normalize is False and not True; resample is 1 and not one of 2, 3",
        ),
        ({"crop_size": 48}, "become 48 pixels wide"),
        ({"size": {"shortest_edge": 128}}, "cut smaller than they are resized"),
        ({"image_mean": None}, "no preprocessor_config.json with image_mean"),
    ],
)
def test_picture_settings_that_are_refused(tmp_path, stock, pictures, message):
    folder = write_original(tmp_path / "checkpoint", stock)
    change(folder / "clip" / "preprocessor_config.json", **pictures)
    refused(folder, tmp_path / "run", message)


def without_its_ends(folder) -> None:
    """A tokenizer in which the ends of a text are called otherwise than in any Llama."""
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<s>", "<begin>").replace("</s>", "<end>"))
    change(folder / "tokenizer_config.json", bos_token="<begin>", eos_token="<end>")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "tokenizer.json").write_text("{"), r"tokenizer\.json cannot be read"),
        (lambda f: (f / "tokenizer_config.json").unlink(), "names no end of an answer"),
        (without_its_ends, "does not mark what training supervises, and none of"),
        (lambda f: change(f / "config.json", vocab_size=200), "and the word table 200 rows"),
    ],
)
def test_tokenizers_that_are_refused(spoken, tmp_path, harm, message):
    harm(spoken)
    refused(spoken, tmp_path / "run", message)


def test_a_bare_sentencepiece_model(spoken, tmp_path, monkeypatch):
    (spoken / "tokenizer.json").rename(spoken / "tokenizer.model")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    refused(spoken, tmp_path / "run", "pip install sentencepiece protobuf, or put a tokenizer.json")


def test_the_tokenizer_of_another_model(tmp_path):
    words = byte_words()
    words.add_tokens(["<image>"], special_tokens=True)
    folder = write_transformers(tmp_path / "checkpoint", stock_llava(len(words)))
    words.save_pretrained(folder)
    change(folder / "config.json", image_token_index=7)
    refused(folder, tmp_path / "run", f"<image> is token {len(words) - 1} of .*, and 7 of the configuration")
