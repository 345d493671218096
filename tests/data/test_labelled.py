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
    one, later, two = labelled(talk)
    assert (later.id, later.image, later.question) == ("r@0#1", ONE, "and?")
    assert (later.within.row.turns, later.within.row.pictures) == (talk.turns[:2], (ONE,))
    assert (one.id, one.image, one.question) == ("r@0", ONE, "first\nwhat?")
    assert (one.within.row.turns, one.within.row.pictures) == (talk.turns[:1], (ONE,))
    assert (two.id, two.image, two.question, two.answers) == ("r@1", TWO, "same?", ("no",))
    assert (two.within.row, two.within.number, two.group) == (talk, 1, "g")


def test_a_later_question_is_about_the_pictures_that_were_shown_last():
    talk = row(
        said("before any"), said(PicturePlace(0), "one?"), said(PicturePlace(1), PicturePlace(2)),
        said("alike?", answer="2"), said("sure?"), pictures=(ONE, TWO, ONE),
    )  # fmt: skip
    assert [one.id for one in labelled(talk)] == ["r@0", "r@1#3", "r@2#3", "r@1#4", "r@2#4"]
    _, second, third, *_ = labelled(talk)
    assert (second.image, second.question, second.answers, second.within.number) == (TWO, "alike?", ("2",), 1)
    assert (third.within.row.turns, third.within.row.pictures) == (talk.turns[:4], talk.pictures)
    behind = row(said("look", PicturePlace(0), "what?"), said("and?"))
    assert [one.id for one in labelled(behind)] == ["r@0", "r@0#1"]


@pytest.mark.parametrize("nothing", [row(said("why?"), pictures=()), row(said(PicturePlace(0)))])
def test_rows_that_ask_nothing_about_a_picture_are_named(nothing):
    assert labelled(nothing) == []
    with pytest.raises(MvlmError, match=r"1 rows ask nothing about a picture \(id r\)"):
        label_questions([nothing])
