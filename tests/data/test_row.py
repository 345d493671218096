"""The row model: what a row may be asked for, and a conversation as questions of their own."""

from pathlib import Path

import pytest

from export.runtime.errors import MvlmError
from mvlm_core.data.pictures import PictureFile
from mvlm_core.data.row import PicturePlace, Row, Turn, questions_of, single_questions
from tests.support.tiny import one_question

PICTURE, OTHER = PictureFile(Path("a.png")), PictureFile(Path("b.png"))


def row(*turns: Turn, pictures=(PICTURE,), system=None) -> Row:
    return Row("r", pictures, turns, None, "g", "train", system)


def said(*content, answer="yes") -> Turn:
    return Turn(content, (answer, "also right"))


CONVERSATION = row(said(PicturePlace(0), "one?", answer="1"), said("two?", answer="2"), system=None)
# Rows that no single question can be made of.
OTHERS = {
    "two pictures": row(said(PicturePlace(0), PicturePlace(1), "same?"), pictures=(PICTURE, OTHER)),
    "no picture": row(said("why?"), pictures=()),
    "a picture behind words": row(said("what is", PicturePlace(0))),
    "a picture in a later turn": row(said("hello"), said(PicturePlace(0), "what?")),
    "a picture alone": row(said(PicturePlace(0))),
    "two texts": row(said(PicturePlace(0), "what", "is it?")),
    "a system text": row(said(PicturePlace(0), "what?"), system="Be brief."),
}


def test_one_question_about_one_picture():
    single = one_question("r", PICTURE.path, "what?", "a star")
    assert (single.image, single.question, single.answers) == (PICTURE, "what?", ("a star",))
    assert single_questions([single]) == questions_of(single) == [single]


def test_a_conversation_is_split_into_its_questions():
    questions = single_questions([CONVERSATION])
    assert [(q.id, q.question, q.answers[0]) for q in questions] == [("r#0", "one?", "1"), ("r#1", "two?", "2")]
    assert {q.image for q in questions} == {PICTURE}


@pytest.mark.parametrize("other", [CONVERSATION, *OTHERS.values()], ids=["a conversation", *OTHERS])
@pytest.mark.parametrize("asked", ["image", "question", "answers"])
def test_only_a_single_question_has_one(other, asked):
    with pytest.raises(MvlmError, match="id r: not one question behind one picture"):
        getattr(other, asked)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_rows_that_cannot_be_split_are_named(other):
    assert questions_of(other) == []
    with pytest.raises(MvlmError, match=r"1 rows are not questions about one picture .* \(id r\)"):
        single_questions([CONVERSATION, other])


def test_messages_have_the_pictures_in_place_and_the_first_answer():
    told = row(
        said("from", PicturePlace(0), "to", PicturePlace(1)),
        said("and?"),
        pictures=(PICTURE, OTHER),
        system="Be brief.",
    )
    words = [
        (m["role"], [part.get("text", part["type"]) for part in m["content"]]) for m in told.messages()
    ]  # fmt: skip
    assert words == [
        ("system", ["Be brief."]), ("user", ["from", "image", "to", "image"]), ("assistant", ["yes"]),
        ("user", ["and?"]), ("assistant", ["yes"]),
    ]  # fmt: skip
    assert told.texts() == ["Be brief.", "from", "to", "yes", "also right", "and?", "yes", "also right"]


def test_the_same_picture_has_the_same_key():
    assert PictureFile(Path("x/../a.png")).key == PICTURE.key != OTHER.key
