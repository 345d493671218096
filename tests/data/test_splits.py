"""Splits that are made by picture and said beside the data."""

import json
from collections import Counter

import pytest
from PIL import Image

from mvlm_core.data.reading import read_rows, rows_sha256, stream_rows


@pytest.fixture
def llava(tmp_path):
    """A LLaVA file: 150 pictures of two tasks, two questions about each, and no splits."""
    rows = []
    for n in range(150):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / f"{n}.png")
        said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "it"}]
        rows += [{"id": str(n), "image": f"{n}.png", "conversations": said, "task": f"t{n % 2}"}] * 2
    (tmp_path / "my.json").write_text(json.dumps(rows))
    return tmp_path / "my.json"


def test_pictures_stay_whole_tasks_are_spread_and_the_file_stays_as_it_is(llava, mvlm):
    before, hashed = llava.read_bytes(), rows_sha256(llava)
    result = mvlm("data", "split", llava, "--val", "10%", "--test", "0.2")
    assert result.exit_code == 0, result.output
    assert "val: 30 rows about 15 pictures" in result.output
    assert f"next: mvlm data check {llava}" in result.output
    assert llava.read_bytes() == before
    assert rows_sha256(llava) != hashed  # other splits are other data
    rows = read_rows(llava)
    assert Counter(row.split for row in rows) == {"train": 210, "test": 60, "val": 30}
    assert list(stream_rows(llava)) == rows
    for name in ("val", "test"):
        tasks = Counter(row.task for row in rows if row.split == name)
        assert abs(tasks["t0"] - tasks["t1"]) <= 2
    assert {row.split for row in read_rows(llava, said_beside=False)} == {"train"}
    assert mvlm("data", "split", llava, "--overwrite", "--seed", "1").exit_code == 0
    assert read_rows(llava) != rows


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (("--val", "ten"), "--val ten is no share"),
        (("--test", "0"), "--test 0 is no share"),
        (("--val", "60%", "--test", "40%"), "leave nothing to train on"),
        (("--val", "1%"), "1 pictures would be of the split val, and a router needs 12"),
    ],
)
def test_what_cannot_be_split(llava, mvlm, told, why):
    result = mvlm("data", "split", llava, *told)
    assert result.exit_code == 2
    assert why in result.output
    assert not llava.with_suffix(".splits.json").exists()


def test_splits_that_are_there_are_replaced_only_when_asked(llava, mvlm):
    assert mvlm("data", "split", llava).exit_code == 0
    assert "is there already" in mvlm("data", "split", llava).output
    rows = json.loads(llava.read_text())
    llava.write_text(json.dumps([row | {"split": "val" if int(row["id"]) % 3 else "test"} for row in rows]))
    llava.with_suffix(".splits.json").unlink()
    assert "the rows say their splits themselves (test, val)" in mvlm("data", "split", llava).output
    assert mvlm("data", "split", llava, "--overwrite").exit_code == 0
    assert "train" in {row.split for row in read_rows(llava)}


def test_splits_of_other_contents_are_refused(llava, mvlm):
    assert mvlm("data", "split", llava).exit_code == 0
    llava.write_text(json.dumps(json.loads(llava.read_text())[:-2]))
    result = mvlm("data", "check", llava)
    assert result.exit_code == 2
    assert "is about other contents" in result.output


def test_a_folder_has_its_splits_within(llava, mvlm):
    result = mvlm("data", "split", llava.parent)
    assert result.exit_code == 0, result.output
    assert (llava.parent / "splits.json").is_file()
    assert {row.split for row in read_rows(llava.parent)} == {"train", "val", "test"}
