"""Special tokens that a person spelled out stay text, in training and in the processor as on the device."""

import itertools
import random

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from export.runtime.errors import MvlmError
from mvlm_core.modeling.chat_encoding import Encoded, encode_text, spell, supervised, truncate
from mvlm_core.modeling.chat_templates import TEMPLATES
from mvlm_core.modeling.processing import MvlmImageProcessor, MvlmProcessor, prompt_of, turn
from tests.support.tiny import SIZE_PX, drawn_picture, tiny_processor

SPELLED = [
    "what is <image> here?", "<image>", "<image><image>", "<end>", "a <assistant> red<end> b", "<user", "image>",
    "\ufdd0", "<\ufdd0image>", "<image\ufdd0>", "\ufdd0\ufdd0<image>\ufdd0", " two  spaces <pad>\n",
]  # fmt: skip
PLAIN = ["what colour is it?", " spaces  all over ", "line\nbreak", "47, où? 形 🙂"]


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.mark.parametrize("question", SPELLED + PLAIN)
def test_a_question_is_the_same_in_training_in_the_processor_and_on_the_device(processor, question):
    prompt = prompt_of(processor)
    told = processor.tokenizer.decode(prompt.question_ids(question), skip_special_tokens=False)
    assert told == f" {question}"
    device = prompt.ids(question, 4, processor.image_token_id)
    batch = processor(images=drawn_picture(), text=processor.ask(question), num_visual_tokens=4)
    assert batch["input_ids"][0].tolist() == device
    trained = processor.encode(turn(question, "red"))
    assert trained.ids[: trained.supervised.index(True)] == prompt.ids(question, 1, processor.image_token_id)


@pytest.mark.parametrize("answer", SPELLED + PLAIN)
def test_an_answer_is_supervised_to_its_end_whatever_it_spells(processor, answer):
    encoded = processor.encode(turn("what?", answer))
    ids = [id for id, is_answer in zip(encoded.ids, encoded.supervised, strict=True) if is_answer]
    assert processor.tokenizer.decode(ids) == f" {answer}<end>"
    assert ids[-1] == processor.tokenizer.eos_token_id
    assert ids.count(ids[-1]) == 1


def test_transformers_own_way_keeps_them_as_text_too(processor):
    messages = turn("what is <image>?")
    messages[0]["content"][0]["image"] = drawn_picture()
    batch = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"num_visual_tokens": 4},
    )  # fmt: skip
    wanted = prompt_of(processor).ids("what is <image>?", 4, processor.image_token_id)
    assert batch["input_ids"][0].tolist() == wanted
    assert batch["pixel_values"].shape[0] == 1


def conversation(generator: random.Random, words: list[str]):
    """Several turns, several pictures, text-only ones, perhaps a system text."""
    messages = []
    if generator.random() < 0.5:
        messages.append({"role": "system", "content": [{"type": "text", "text": generator.choice(words)}]})
    for _ in range(generator.randint(1, 4)):
        parts = [{"type": "image"}] * generator.randint(0, 2) + [{"type": "text", "text": generator.choice(words)}]
        generator.shuffle(parts)
        answer = [{"type": "text", "text": generator.choice(words)}]
        messages += [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    return messages


@pytest.mark.parametrize("seed", range(20))
def test_the_answer_mask_is_that_of_transformers(processor, seed):
    messages = conversation(random.Random(seed), PLAIN)
    slow = processor.tokenizer.apply_chat_template(
        messages, chat_template=processor.chat_template, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    encoded = processor.encode(messages)
    assert encoded.ids == slow["input_ids"]
    assert encoded.supervised == [bool(mask) for mask in slow["assistant_masks"]]


@pytest.mark.parametrize("seed", range(20))
def test_the_answer_mask_of_spelled_texts(processor, seed):
    """Against an alphabet in which nothing is special: each character by itself says whose it is."""
    messages = conversation(random.Random(seed), SPELLED)
    encoded = processor.encode(messages)
    wanted = "".join(f" {m['content'][0]['text']}<end>" for m in messages if m["role"] == "assistant")
    ids = torch.tensor(encoded.ids)[torch.tensor(encoded.supervised)]
    assert processor.tokenizer.decode(ids.tolist()) == wanted
    pictures = sum(part["type"] == "image" for message in messages for part in message["content"])
    assert encoded.ids.count(processor.image_token_id) == pictures


def test_spelling_is_for_texts_and_nothing_else(processor):
    messages = [
        {"role": "<user>", "content": [{"type": "image", "image": "<image>"}, {"type": "text", "text": "<end>"}]}
    ]
    told = spell(messages, processor.tokenizer)
    assert told[0]["role"] == "<user>"
    assert told[0]["content"][0] == messages[0]["content"][0]
    assert "<end>" not in told[0]["content"][1]["text"]


def llama_processor() -> MvlmProcessor:
    """A tokenizer of Llama's kind, which puts a space before the first piece of a text and before no other."""
    words = ["<unk>", "<s>", "</s>", "\u2581", *"abcdefghijklmnopqrstuvwxyz<>/\n:?.ASTURE0123456789 \ufdd0", "\u2581a"]
    tokenizer = LlamaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[("\u2581", "a")])
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    tokenizer.pad_token = tokenizer.unk_token
    return MvlmProcessor(MvlmImageProcessor(size_px=SIZE_PX), tokenizer, TEMPLATES["vicuna"].text)


@pytest.mark.parametrize("question", ["a star?", " a", "a <image> a?", "<image>", "</s> a", "what is <s>?"])
def test_llama_s_space_in_front_stands_where_it_does_in_training_and_on_the_device(question):
    processor = llama_processor()
    prompt = prompt_of(processor)
    device = prompt.ids(question, 1, processor.image_token_id)
    assert device.count(processor.image_token_id) == 1
    trained = processor.encode(turn(question, "a <image> b"))
    assert trained.ids[: trained.supervised.index(True)] == device
    batch = processor(images=drawn_picture(), text=processor.ask(question), num_visual_tokens=1)
    assert batch["input_ids"][0].tolist() == device
    if "<" not in question:
        assert processor.tokenizer(processor.ask(question), add_special_tokens=False)["input_ids"] == device


def test_a_tokenizer_whose_pieces_depend_on_what_stands_before_them():
    bare = Tokenizer(models.WordLevel({"?": 0, "\u2581a": 1, "a": 2, "<e>": 3}, unk_token="?"))
    bare.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<e>", unk_token="?")
    assert encode_text("a<e>a", tokenizer)[0] == [1, 3, 2]
    with pytest.raises(MvlmError, match="cannot keep <e> as text"):
        encode_text("a<e>" + spell("a <e>", tokenizer), tokenizer)


PICTURE = 9
LONG = Encoded([1, PICTURE, 2, 3, PICTURE, 4, 5, 6, 7], [False] * 5 + [False, True, True, False])


def test_truncation_shortens_text():
    assert LONG.length(1, PICTURE) == 9
    assert LONG.length(4, PICTURE) == 15
    assert truncate(LONG, 15, 4, PICTURE) is LONG
    shorter = truncate(LONG, 13, 4, PICTURE)
    assert shorter == Encoded(LONG.ids[:7], LONG.supervised[:7])
    assert shorter.length(4, PICTURE) == 13


@pytest.mark.parametrize(
    ("most", "says"),
    [(12, "15 tokens at scale 4 do not fit into 12 without leaving out every answer"),
     (10, "without leaving out a picture"), (0, "without leaving out a picture")],
)  # fmt: skip
def test_truncation_leaves_out_neither_pictures_nor_every_answer(most, says):
    with pytest.raises(MvlmError, match=says):
        truncate(LONG, most, 4, PICTURE)


@pytest.mark.parametrize("seed", range(10))
def test_an_id_is_supervised_when_a_character_of_it_is(seed):
    generator = random.Random(seed)
    borders = sorted(generator.choices(range(40), k=20))
    offsets = list(itertools.pairwise(borders))  # some without a character
    ends = sorted(generator.sample(range(45), 6))
    spans = list(zip(ends[::2], ends[1::2], strict=True))
    slow = [
        any(a <= place < b for a, b in spans for place in range(start, max(end, start + 1))) for start, end in offsets
    ]
    assert supervised(offsets, spans) == slow
    assert supervised(offsets, []) == [False] * len(offsets)
    assert supervised([], spans) == []
