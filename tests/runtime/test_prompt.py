"""The device's prompt against the processor's chat template."""

from __future__ import annotations

import json

import pytest

from export.runtime import MvlmError
from export.runtime.prompt import FixedIds, ImagePlace, Prompt, QuestionText
from mvlm_core.modeling.processing import prompt_of
from tests.support.tiny import QUESTIONS, drawn_picture, tiny_processor

ODD_QUESTIONS = ["a", " spaces  all over ", "line\nbreak", "zahl 47, où? 形 🙂", "'quoted' \"twice\"", "x" * 300]


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.mark.parametrize("question", [*QUESTIONS, *ODD_QUESTIONS])
def test_ids_are_those_of_the_processor(processor, question):
    prompt = prompt_of(processor)
    read_back = Prompt.from_json(json.loads(json.dumps(prompt.to_json())), processor.tokenizer.backend_tokenizer)
    for m in (1, 9):
        batch = processor(images=[drawn_picture()], text=[processor.ask(question)], num_visual_tokens=m)
        wanted = batch["input_ids"][0].tolist()
        assert prompt.ids(question, m, processor.image_token_id) == wanted
        assert read_back.ids(question, m, processor.image_token_id) == wanted


def test_the_question_s_own_ids_stand_in_the_prompt(processor):
    prompt = prompt_of(processor)
    own, whole = prompt.question_ids(QUESTIONS[0]), prompt.ids(QUESTIONS[0], 2, processor.image_token_id)
    assert processor.tokenizer.decode(own).strip() == QUESTIONS[0]
    assert any(whole[i : i + len(own)] == own for i in range(len(whole)))


@pytest.mark.parametrize("token", ["<image>", "<end>", "<assistant>"])
def test_special_tokens_written_out_stay_text(processor, token):
    prompt = prompt_of(processor)
    special = processor.tokenizer.convert_tokens_to_ids(token)
    assert special not in prompt.question_ids(f"what is {token} here?")
    assert prompt.answer(prompt.question_ids(f"what is {token}?")) == f"what is {token}?"


def test_an_answer_is_read_without_special_tokens_and_space_around_it(processor):
    ids = processor.tokenizer(" red<end>", add_special_tokens=False)["input_ids"]
    assert prompt_of(processor).answer(ids) == "red"


def test_padding_of_the_processor_does_not_reach_the_prompt(processor):
    pair = [processor.ask("what is the red star?"), processor.ask("it?")]
    processor(images=[drawn_picture()] * 2, text=pair, num_visual_tokens=4)  # leaves padding on
    prompt = prompt_of(processor)
    assert processor.tokenizer.pad_token_id not in prompt.question_ids("it?")
    assert len(prompt.question_ids("what is the red star?")) < 40


def test_a_template_with_words_around_the_question(processor):
    template = processor.chat_template.replace("<user>", "<user>Look closely.").replace(
        "part.text }}", "part.text }} Be brief."
    )
    other = tiny_processor()
    other.chat_template = template
    prompt = prompt_of(other)
    wanted = other.tokenizer(other.ask("what?"), add_special_tokens=False)["input_ids"]
    assert prompt.ids("what?", 1, other.image_token_id) == wanted


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("part.text", "part.text|trim"), "leaves the question as it is"),
        (("part.text", "part.text|upper"), "shows no question"),
        (("<image>", "<image><image>"), "2 places for a picture and 1 for a question"),
        (("<image>", ""), "0 places for a picture"),
        (("{{ part.text }}", "some question"), "shows no question"),
    ],
)
def test_templates_that_cannot_be_taken_apart(change, says):
    processor = tiny_processor()
    processor.chat_template = processor.chat_template.replace(*change)
    with pytest.raises(MvlmError, match=says):
        prompt_of(processor)


def test_parts_keep_their_order(processor):
    tokenizer = processor.tokenizer.backend_tokenizer
    prompt = Prompt([QuestionText("", ""), FixedIds((3, 4)), ImagePlace()], tokenizer)
    assert prompt.ids("a", 2, 1) == [*prompt.question_ids("a"), 3, 4, 1, 1]
