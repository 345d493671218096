"""What a row says of how its answers are scored."""

import pytest

from export.runtime.errors import MvlmError
from mvlm_core.data.formats import Origin, read_row
from mvlm_core.data.row import Row

ASKED = {"id": "1", "image": "a.png", "question": "how many?"}


def read(tmp_path, **held) -> Row:
    return read_row(ASKED | held, Origin("line 1", tmp_path))


def test_votes_are_told_apart_from_answers_and_answer_where_there_are_none(tmp_path):
    row = read(tmp_path, votes=["2", "two", "two", "3"])
    assert row.reference.votes == ("2", "two", "two", "3")
    assert row.answers == ("two",)
    assert read(tmp_path, answers="2", votes=[2, "two"]).reference.votes == ("2", "two")
    assert read(tmp_path, answers="2").reference.votes == ()


def test_options_and_metric(tmp_path):
    row = read(tmp_path, answers="B", options=["one", "two"], metric="choice")
    assert row.reference.options == ("one", "two")
    assert row.metric == "choice"
    said = [{"from": "human", "value": "<image>\nhow many?"}, {"from": "gpt", "value": "A"}]
    llava = {"id": "2", "image": "a.png", "conversations": said, "options": ["one", "two"]}
    assert read_row(llava, Origin("line 1", tmp_path)).reference.options == ("one", "two")


def test_a_question_may_be_only_asked(tmp_path):
    assert read(tmp_path).answers == ()
    assert read(tmp_path, answers=None).answers == ()
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many?"}]}]
    row = read_row({"id": "3", "images": ["a.png"], "messages": chat}, Origin("line 1", tmp_path))
    assert (row.question, row.answers) == ("how many?", ())


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({"answers": []}, "no answers"),
        ({"answers": "x", "metric": "right"}, "is none of exact"),
        ({"votes": "two"}, "votes is no list of texts"),
        ({"votes": []}, "votes is no list of texts"),
        ({"votes": ["two", " "]}, "one of the votes is empty"),
        ({"answers": "purple", "options": ["red", "blue"]}, "none of the options 'red', 'blue' is the answer 'purple'"),
    ],
)
def test_faults(tmp_path, held, why):
    with pytest.raises(MvlmError, match=why):
        read(tmp_path, **held)


def test_votes_belong_to_one_question(tmp_path):
    turns = [{"from": who, "value": "x"} for who in ("human", "gpt", "human", "gpt")]
    with pytest.raises(MvlmError, match="the row has several"):
        read_row({"id": "1", "conversations": turns, "votes": ["x"]}, Origin("line 1", tmp_path))
