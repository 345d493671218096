"""What the processor takes as a scale, and a model that is not stitched."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from export.runtime.errors import MvlmError
from export.runtime.image import open_picture
from export.runtime.views import ViewSpec
from mvlm_core.modeling.chat_encoding import answer_spans
from mvlm_core.modeling.processing import MvlmImageProcessor, MvlmProcessor
from tests.support.tiny import QUESTIONS, drawn_picture, tiny_model, tiny_processor


def test_a_scale_is_what_num_visual_tokens_was():
    processor = tiny_processor()
    text = processor.ask(QUESTIONS[0])
    old, new, word = (
        processor(text=text, images=[drawn_picture()], **told)
        for told in ({"num_visual_tokens": 9}, {"scale": 9}, {"scale": "9"})
    )
    for key in old:
        assert torch.equal(old[key], new[key])
        assert torch.equal(old[key], word[key])


def test_two_names_at_once_are_refused():
    processor = tiny_processor()
    with pytest.raises(MvlmError, match="say the same: give one of the two"):
        processor(text=processor.ask("a"), images=[drawn_picture()], scale=9, num_visual_tokens=9)


@pytest.mark.parametrize("scale", ["native", "9@4", "9@native"])
def test_a_model_of_one_view_has_no_tiles(scale):
    processor = tiny_processor()
    with pytest.raises(MvlmError, match=f"sees a picture as a whole, and {scale} asks for tiles"):
        processor(text=processor.ask("a"), images=[drawn_picture()], scale=scale)


def test_a_model_without_a_newline_is_not_stitched():
    processor = tiny_processor()
    inputs = processor(text=processor.ask("a"), images=[drawn_picture()], scale=9)
    with pytest.raises(MvlmError, match="has no newline vector"):
        tiny_model(processor=processor)(**inputs, stitch_sources=torch.full((9, 1), -1))


def test_answers_of_a_template_that_changes_as_it_goes_on_are_not_found():
    tokenizer = tiny_processor().tokenizer
    assert answer_spans("a b<end> c", [("a", "a b<end> c")], tokenizer) == [(1, 8)]
    assert answer_spans("a b", [("a", "a b")], tokenizer) == [(1, 3)]
    for whole, asked, answered in (("x b", "a", "a b"), ("a b", "c", "a b")):
        with pytest.raises(MvlmError, match="the chat template marks no answers, and shows a conversation otherwise"):
            answer_spans(whole, [(asked, answered)], tokenizer)


def test_a_conversation_that_a_template_refuses():
    words = tiny_processor().tokenizer
    views = ViewSpec(96, 12, (0.5,) * 3, (0.5,) * 3).to_json()
    processor = MvlmProcessor(MvlmImageProcessor(views=views), words, chat_template="{{ raise_exception('no') }}")
    with pytest.raises(MvlmError, match="the chat template refuses this conversation: no"):
        processor.encode([{"role": "user", "content": "a"}])


def test_what_is_transparent_lies_on_white_where_that_is_asked():
    clear = Image.new("RGBA", (2, 2), (200, 0, 0, 0))
    assert open_picture(clear).getpixel((0, 0)) == (200, 0, 0)
    assert open_picture(clear, on_white=True).getpixel((0, 0)) == (255, 255, 255)
