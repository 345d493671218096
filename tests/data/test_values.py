"""What stands in a row where a text should: a number is its text, and everything else is a fault that names the row."""

import json
import math
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.runtime.errors import MvlmError
from mvlm_core.data.formats import Origin, read_row
from mvlm_core.data.reading import read_rows
from mvlm_core.data.row import Row
from mvlm_core.data.values import read_json, shown, text_of

ORIGIN = Origin("line 3", Path("data"))
ROW = {"id": "1", "image": "p.png", "question": "how many?", "answers": ["4"]}


def read(**change) -> Row:
    return read_row(ROW | change, ORIGIN)


def said(role: object, content: object) -> dict:
    answer = {"role": "assistant", "content": "x"}
    return {"id": "1", "image": None, "question": None, "messages": [{"role": role, "content": content}, answer]}


NUMBERS = [(4, "4"), (4.0, "4.0"), (-0.5, "-0.5"), (10**400, "1" + "0" * 400), (Decimal("4.50"), "4.50")]


@pytest.mark.parametrize(("number", "text"), NUMBERS)
def test_a_number_is_its_text(number, text):
    assert read(answers=number).answers == (text,)
    assert read(answers=[number, "x"]).answers == (text, "x")
    assert read(question=number).question == text
    row = read(id=number, task=number, group=number)
    assert (row.id, row.task, row.group) == (text, text, text)
    assert read_row(said("user", number), ORIGIN).turns[0].content == (text,)
    spoken = [{"from": "human", "value": "?"}, {"from": "gpt", "value": number}]
    assert read_row({"id": "1", "conversations": spoken}, ORIGIN).turns[0].answers == (text,)


def test_a_number_of_a_file_is_as_it_is_written_there(tmp_path):
    lines = [f'{{"id": "{i}", "image": null, "question": "?", "answers": {n}}}' for i, n in enumerate(["4.50", "1e3"])]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    assert [row.turns[0].answers for row in read_rows(tmp_path)] == [("4.50",), ("1e3",)]
    (tmp_path / "rows.json").write_text(f"[{','.join(lines)}]")
    assert [row.turns[0].answers for row in read_rows(tmp_path / "rows.json")] == [("4.50",), ("1e3",)]


HALF = "what? \ud83d"
FAULTS = {
    "an answer is True, which is neither text nor a number": {"answers": True},
    "an answer is nan": {"answers": math.nan},
    "an answer is inf": {"answers": [math.inf]},
    "an answer is null": {"answers": ["a", None]},
    "an answer is {'start': [1], 'text': ['four']}": {"answers": {"text": ["four"], "start": [1]}},
    "an answer is [['a']]": {"answers": [[["a"]]]},
    'no answers: "answer" is not read': {"answers": None, "answer": "four"},
    "no answers: one of them is empty": {"answers": ["a", " "]},
    "the question is ['what?']": {"question": ["what?"]},
    "the question is nan": {"question": math.nan},
    "the question holds half a character": {"question": HALF},
    "an answer holds half a character": {"answers": [HALF]},
    "the task holds half a character": {"task": HALF},
    "the name of a picture holds half a character": {"image": HALF},
    "the id holds half a character": {"id": HALF},
    "id '1\\n2': the question is {}": {"id": "1\n2", "question": {}},
    "the id is ['1']": {"id": ["1"]},
    "the group is {}": {"group": {}},
    "the split is ['train']": {"split": ["train"]},
    "the role ['user'] is none of": said(["user"], "x"),
    "the content of user is null": said("user", None),
    "content of the type {'a': 1} is none of": said("user", [{"type": {"a": 1}}]),
    "a turn's 'text' is {}": said("user", [{"type": "text", "text": {}}]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_everything_else_is_a_fault_of_its_row(fault):
    with pytest.raises(MvlmError) as error:
        read(**FAULTS[fault])
    assert fault in str(error.value)
    assert str(error.value).startswith("line 3")
    assert str(error.value).isprintable()


DEEP = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    ("text", "fault"),
    [(DEEP, "nested too deep"), (b"\xff\xfe{", "save the file as UTF-8"), ("{", "not valid JSON"),
     ("1" * 5000, "not valid JSON")],
)  # fmt: skip
def test_what_is_no_json(text, fault):
    with pytest.raises(MvlmError, match=fault):
        read_json(text)


def test_faults_of_files_name_their_line(tmp_path):
    whole = json.dumps(ROW | {"image": None})
    (tmp_path / "rows.jsonl").write_bytes("\n".join([whole, DEEP, json.dumps(ROW | {"image": HALF})]).encode())
    with pytest.raises(MvlmError) as error:
        read_rows(tmp_path)
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == ["line 2", "line 3, id 1"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_byte_order_mark_is_no_fault(tmp_path, name):
    row = json.dumps(ROW | {"image": None})
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (f"[{row}]" if name == "a.json" else row).encode())
    assert [row.id for row in read_rows(tmp_path / name)] == ["1"]


@pytest.mark.parametrize("name", ["n" * 300 + ".png", "a/" * 3000 + "p.png", "a\0b"])
def test_a_name_that_no_file_can_have(tmp_path, name):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"image": name}))
    with pytest.raises(MvlmError, match="id 1: no picture"):
        read_rows(tmp_path)


def test_messages_show_values_shortly():
    assert shown(None) == "null"
    assert len(shown({"a": ["x" * 10_000] * 10_000})) < 250
    assert text_of("é", "it") == "é"


KEYS = ("id", "image", "images", "question", "answers", "answer", "conversations", "messages", "texts", "task",
        "group", "split", "role", "from", "value", "content", "type", "text", "url", "image_url", "bytes")  # fmt: skip
WORDS = st.sampled_from(["user", "assistant", "human", "gpt", "system", "image", "text", "<image>", "train", "a.png",
                         "data:image/png;base64,AA==", "data:,", "\ud83d", "", " "])  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), st.booleans())
def test_any_row_is_read_or_refused_in_one_line_that_names_it(change, like_a_row):
    """No input gives anything but a row of texts, or one line that says where."""
    row, refusal = None, None
    try:
        row = read_row((ROW if like_a_row else {}) | change, ORIGIN)
    except MvlmError as error:
        refusal = str(error)
    if row is None:
        assert refusal.startswith("line 3")
        assert "\n" not in refusal
        refusal.encode()
        return
    assert row.turns
    for text in [row.id, row.group, *row.texts(), *([row.task] if row.task else [])]:
        assert isinstance(text, str)
        text.encode()
    assert all(turn.answers and all(answer.strip() for answer in turn.answers) for turn in row.turns)
