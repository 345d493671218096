"""What is asked of rows to label them."""

from pathlib import Path

import pytest

from export.runtime.errors import MvlmError
from mvlm_core.data.labelled import label_questions, labelled
from mvlm_core.data.pictures import PictureFile
from mvlm_core.data.row import PicturePlace, Row, Turn, questions_of

ONE, TWO = PictureFile(Path("a.png")), PictureFile(Path("b.png"))


def row(*turns: Turn, pictures=(ONE,), system=None) -> Row:
    return Row("r", pictures, turns, None, "g", "val", system)


def said(*content, answer="yes") -> Turn:
    return Turn(content, (answer,))


def test_single_questions_are_as_before():
    talk = row(said(PicturePlace(0), "one?"), said("two?"))
    assert labelled(talk) == questions_of(talk)


def test_each_question_stands_behind_the_system_text():
    talk = row(said(PicturePlace(0), "one?"), said("two?", answer="2"), system="Be brief.")
    first, second = labelled(talk)
    assert (first.id, second.id) == ("r#0", "r#1")
    assert (second.question, second.answers, second.image) == ("two?", ("2",), ONE)  # alone it is a single question
    assert second.within.row.system == "Be brief."
    assert second.within.row.turns == (said(PicturePlace(0), "two?", answer="2"),)


def test_each_of_several_pictures_is_asked_about_where_it_stands():
    talk = row(
        said("first", PicturePlace(0), "what?"), said("and?"), said(PicturePlace(1), "same?", answer="no"),
        pictures=(ONE, TWO), system="Be brief.",
    )  # fmt: skip
    one, two = labelled(talk)
    assert (one.id, one.image, one.question) == ("r@0", ONE, "first\nwhat?")
    assert (one.within.row.turns, one.within.row.pictures) == (talk.turns[:1], (ONE,))
    assert (two.id, two.image, two.question, two.answers) == ("r@1", TWO, "same?", ("no",))
    assert (two.within.row, two.within.number, two.group) == (talk, 1, "g")


@pytest.mark.parametrize("nothing", [row(said("why?"), pictures=()), row(said(PicturePlace(0)))])
def test_rows_that_ask_nothing_about_a_picture_are_named(nothing):
    assert labelled(nothing) == []
    with pytest.raises(MvlmError, match=r"1 rows ask nothing about a picture \(id r\)"):
        label_questions([nothing])
