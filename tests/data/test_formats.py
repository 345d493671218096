"""Every format of a row, and every fault that a row can have alone."""

import base64
from pathlib import Path

import pytest

from export.runtime.errors import MvlmError
from mvlm_core.data.formats import Origin, read_row
from mvlm_core.data.row import PicturePlace

ORIGIN = Origin("line 3", Path("data"))
PIXELS = b"not looked at here"
URL = "data:image/png;base64," + base64.b64encode(PIXELS).decode()
P0, P1 = PicturePlace(0), PicturePlace(1)


def read(**value):
    return read_row({"id": "7"} | value, ORIGIN)


def llava(*said, **more):
    roles = ("human", "gpt")
    return read(conversations=[{"from": roles[i % 2], "value": text} for i, text in enumerate(said)], **more)


def chat(*said, **more):
    roles = ("user", "assistant")
    return read(messages=[{"role": roles[i % 2], "content": content} for i, content in enumerate(said)], **more)


def text(words):
    return {"type": "text", "text": words}


def asked(row):
    return [turn.content for turn in row.turns]


def files(row):
    return [str(picture) for picture in row.pictures]


def test_question_and_answers():
    row = read(image="a.png", question="<image> what?", answers=["it", "that"], task="t", group="g", split="val")
    assert asked(row) == [(P0, "<image> what?")]
    assert row.turns[0].answers == ("it", "that")
    assert (files(row), row.task, row.group, row.split) == (["data/a.png"], "t", "g", "val")
    assert asked(read(images=["a.png", "b.png"], question="same?", answers="no")) == [(P0, P1, "same?")]
    alone = read(image=None, question="why?", answers="so")
    assert (asked(alone), alone.pictures, alone.group) == ([("why?",)], (), "7")


def test_llava_conversations():
    row = llava("<image>\nwhat is it?", "a star", "what colour?", "red", image="a.png")
    assert asked(row) == [(P0, "what is it?"), ("what colour?",)]
    assert [turn.answers for turn in row.turns] == [("a star",), ("red",)]
    assert (files(row), row.group) == (["data/a.png"], "a.png")


def test_one_picture_of_llava_stands_in_front_and_several_where_they_are():
    assert asked(llava("what is it?\n<image>", "a star", image="a.png")) == [(P0, "what is it?")]
    two = llava("from <image>\nto <image>?", "north", "and <image>", "no", image=["a.png", "b.png", "c.png"])
    assert asked(two) == [("from", P0, "to", P1, "?"), ("and", PicturePlace(2))]
    assert asked(llava("why?", "so")) == [("why?",)]


def test_messages_with_typed_content():
    row = chat(
        [text("what is "), {"type": "image"}, text("?")],
        [text("a "), text("star")],
        "and <image>?",
        "text",
        images=["a.png"],
    )
    assert asked(row) == [("what is ", P0, "?"), ("and <image>?",)]
    assert row.turns[0].answers == ("a star",)
    system = read(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why?"},
                            {"role": "assistant", "content": "so"}])  # fmt: skip
    assert (system.system, asked(system)) == ("Be brief.", [("why?",)])


def test_pictures_in_the_content():
    parts = [
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "image_url", "image_url": "a.png", "text": None},
        {"type": "image", "image": {"bytes": PIXELS, "path": None}},
        {"type": "image", "path": "b.png"},
        {"type": "image"},
    ]
    row = chat([*parts, text("same?")], "no", image=b"other")
    assert [picture.read() for picture in row.pictures] == [
        PIXELS,
        Path("data/a.png"),
        PIXELS,
        Path("data/b.png"),
        b"other",
    ]
    assert row.pictures[0] == row.pictures[2]
    assert len(set(row.pictures)) == 4


def test_pictures_inside_a_row_are_read_again_when_they_are_needed():
    kept = []

    def again():
        kept.append(1)
        return {"images": [b"one", b"two"], "question": "same?", "answers": ["no"]}

    row = read_row(again() | {"id": 1}, Origin("row 0", Path(), again=again))
    assert [picture.read() for picture in row.pictures] == [b"one", b"two"]
    assert len(kept) == 3
    assert b"one" not in vars(row.pictures[0]).values()


def test_base64_however_it_is_written():
    body = base64.b64encode(PIXELS).decode().rstrip("=")
    for url in (f"DATA:image/PNG;charset=utf-8;base64,{body[:9]}\n{body[9:]}", f"data:;base64,{body}"):
        assert read(image=url, question="?", answers="!").image.read() == PIXELS


def test_texts_of_the_cauldron():
    texts = [{"user": "same <image>?", "assistant": "no", "source": "x"}, {"user": "why?", "assistant": "so"}]
    row = read(texts=texts, images=["a.png", "b.png"])
    assert asked(row) == [(P0, P1, "same <image>?"), ("why?",)]


def test_what_a_row_does_not_say_its_file_does():
    row = read_row(
        {"image": None, "question": "?", "answers": "!", "split": None}, Origin("x", Path(), "test", id="x-1")
    )
    assert (row.id, row.split) == ("x-1", "test")


FAULTS = {
    "not a JSON object": lambda: read_row([], ORIGIN),
    "line 3: no id": lambda: read_row({"question": "?"}, ORIGIN),
    "line 3, id 7: it holds none of question, conv": lambda: read(image="a.png"),
    "it holds question and messages of": lambda: read(question="?", messages=[]),
    "it holds image and images": lambda: read(image="a.png", images=["a.png"], question="?", answers="!"),
    "no image where one is named": lambda: read(images=["a.png", None], question="?", answers="!"),
    "no image: a row about none says": lambda: read(question="?", answers="!"),
    "the question is empty": lambda: chat([text(" ")], "so"),
    "no answers": lambda: llava("why?", " "),
    "split 'dev' is none of train, val, test": lambda: llava("why?", "so", split="dev"),
    "2 <image> in the text and 1 pictures": lambda: llava("<image> and <image>?", "so", image="a.png"),
    "0 <image> in the text and 1 pictures": lambda: llava("what?", "so", image="a.png"),
    "<image> stands in what human does not say": lambda: llava("what?", "<image>", image="a.png"),
    "the role 'bot' is none of system, human, gpt": lambda: read(conversations=[{"from": "bot", "value": "?"}]),
    "the role 'tool' is none of system, user, assistant": lambda: read(messages=[{"role": "tool", "content": "?"}]),
    "its turns must be a list": lambda: read(messages="why?"),
    "its turns must be questions and answers": lambda: llava("why?", "so", "and?"),
    "a turn has no text at 'value'": lambda: llava("why?", None),
    "a turn has no text at 'text'": lambda: chat([{"type": "text"}], "so"),
    "the system text is empty": lambda: read(messages=[{"role": "system", "content": ""}]),
    "content of the type 'audio' is none of": lambda: chat([{"type": "audio"}], "so"),
    "more places for pictures in the content than pictures": lambda: chat([{"type": "image"}] * 2, "!", image="a.png"),
    "2 pictures and 1 places for them": lambda: chat([{"type": "image"}], "!", images=["a.png", "b.png"]),
    "a picture stands in an answer": lambda: chat("why?", [{"type": "image"}], image="a.png"),
    "nothing is fetched": lambda: chat([{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}], "so"),
    "a picture is given as int": lambda: read(image=3, question="?", answers="!"),
    "a picture is given as NoneType": lambda: read(image={"bytes": None, "path": None}, question="?", answers="!"),
    "is not data:...;base64": lambda: read(image="data:image/png,abc", question="?", answers="!"),
    "the base64 of the picture data:image/png;base64 is broken": lambda: read(
        image=URL + "!", question="?", answers="!"
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(fault):
    with pytest.raises(MvlmError) as error:
        FAULTS[fault]()
    assert fault in str(error.value)
    assert str(error.value).startswith("line 3")
    assert "\n" not in str(error.value)
