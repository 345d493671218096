"""Every fault of a data set, all at once."""

import json
from pathlib import Path

import pytest

from export.runtime.errors import MvlmError
from mvlm_core.data.reading import read_rows
from tests.conftest import rewrite_rows
from tests.support.tiny import drawn_picture


@pytest.fixture
def folder(tmp_path) -> Path:
    rows = []
    for i in range(4):
        drawn_picture(i).save(tmp_path / f"{i}.png")
        rows.append(
            {"id": f"r{i}", "image": f"{i}.png", "question": "what?", "answers": ["it"], "task": "t", "group": f"g{i}",
             "split": "train" if i < 2 else "test"}
        )  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_rows_are_read(folder):
    rows = read_rows(folder)
    assert [row.id for row in rows] == ["r0", "r1", "r2", "r3"]
    assert rows[0].image.read() == folder / "0.png"
    assert rows[3].answers == ("it",)
    assert rows == read_rows(folder / "rows.jsonl")


FAULTS = {
    "no id": {"id": None},
    "no image where one is named": {"image": ""},
    "no image: a row about none": {"image": None},
    "the question is empty": {"question": "  "},
    "no answers": {"answers": []},
    "split 'dev' is none of": {"split": "dev"},
    "id r1: 2 rows have it": {"id": "r1"},
    "no picture": {"image": "absent.png"},
    "in the splits test, train": {"image": "2.png", "group": "g0"},
    "group g2: in the splits test, train": {"group": "g2"},
    "it holds question and conversations of": {"conversations": []},
    "it holds none of question, conversations": {"question": None},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(folder, fault):
    change = {key: value for key, value in FAULTS[fault].items() if value is not None}
    dropped = {key for key, value in FAULTS[fault].items() if value is None}

    def spoil(rows):
        rows[0] = {key: value for key, value in (rows[0] | change).items() if key not in dropped}
        return rows

    with pytest.raises(MvlmError, match=fault):
        read_rows(rewrite_rows(folder, spoil))


def test_all_faults_at_once(folder):
    def spoil(rows):
        rows[0]["answers"] = []
        rows[1]["question"] = ""
        rows[2]["image"] = "absent.png"
        return rows

    file = rewrite_rows(folder, spoil) / "rows.jsonl"
    file.write_text(file.read_text() + "{broken\n[]\n")
    with pytest.raises(MvlmError) as error:
        read_rows(folder)
    lines = str(error.value).splitlines()
    assert "has 5 faults" in lines[0]
    for expected in (
        "line 1, id r0",
        "line 2, id r1",
        "id r2: no picture",
        "line 5: not valid JSON",
        "line 6: not a JSON",
    ):
        assert any(expected in line for line in lines), expected


def test_files_that_hold_no_rows(tmp_path):
    with pytest.raises(MvlmError, match="there are no rows at"):
        read_rows(tmp_path)
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(MvlmError, match="holds no rows"):
        read_rows(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(MvlmError, match="not valid JSON"):
        read_rows(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(MvlmError, match="not a JSON list"):
        read_rows(tmp_path / "a.json")
