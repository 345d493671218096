"""What `mvlm data check` says of a data set that is no fault of it."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mvlm_core.data.picture_warnings import picture_warnings
from mvlm_core.data.pictures import PictureBytes
from mvlm_core.data.reading import read_rows
from mvlm_core.data.remarks import half_width, pictures_for, router_pictures, scoring, unread_files, unread_keys
from mvlm_core.data.row import PicturePlace, Row, Turn
from mvlm_core.scoring.of_rows import choose_metrics
from tests.support.tiny import drawn_picture


def lines(*told: dict) -> str:
    return "".join(json.dumps(line) + "\n" for line in told)


QUESTION = {"image": "0.png", "question": "what is it?", "answers": ["it"]}
MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
    {"role": "assistant", "content": "it"},
]


@pytest.fixture
def folder(tmp_path):
    rows = tmp_path / "rows"
    (rows / "more").mkdir(parents=True)
    drawn_picture().save(rows / "0.png")
    return rows


def test_keys_that_nothing_reads(folder):
    (folder / "rows.jsonl").write_text(
        lines({"id": "a", **QUESTION, "anwsers": ["it"], "licence": "CC0"},
              {"id": "b", "image": "0.png", "messages": MESSAGES, "answers": ["it"], "licence": None})
    )  # fmt: skip
    assert unread_keys(folder) == [
        "1 rows hold 'answers', which is not read",
        "1 rows hold 'anwsers', which is not read: did you mean 'answers'?",
        "1 rows hold 'licence', which is not read",
    ]


def test_files_that_nothing_reads(folder):
    (folder / "rows.jsonl").write_text(lines({"id": "a", **QUESTION}))
    (folder / "more.jsonl").write_text("")
    (folder / "notes.txt").write_text("")
    for name in ("1.png", "more/2.JPG", "contact_sheet.png"):
        drawn_picture().save(folder / name)
    rows = read_rows(folder)
    assert unread_files(folder, rows) == [
        "2 pictures that no row names: 1.png, more/2.JPG",
        "1 data files that are not read: more.jsonl",
    ]
    assert unread_files(folder / "rows.jsonl", rows) == []  # one file was named, and it is read


def row(name: str, *answers: str, split: str = "val", task: str | None = None, metric: str | None = None) -> Row:
    turn = Turn((PicturePlace(0), "what?"), answers)
    return Row(name, (PictureBytes(name, b""),), (turn,), task, name, split, None, metric)


def test_answers_that_hardly_anything_equals():
    long = "it is a long way down to the river"
    rows = [row("a", "red"), row("b", "blue"), row("c", long), row("d", "red", metric="number")]
    told = scoring(rows, choose_metrics(rows))
    assert told[0].startswith("`mvlm label` would have them scored by exact (3 rows), number (1 rows); guessed: exact")
    assert told[1] == "1 of them are sentences, which no answer equals word for word: f1 suits them (id c)"
    assert len(scoring(rows[:2], choose_metrics(rows[:2]))) == 1
    assert scoring([], choose_metrics([])) == []


def test_how_many_pictures_a_router_takes():
    assert half_width(pictures_for(2)) == pytest.approx(2, abs=0.01)
    assert half_width(100) == pytest.approx(8.77, abs=0.01)  # 1.96 standard errors of a mean of 20 % ones
    few = [row(f"v{n}") for n in range(20)] + [row(f"t{n}", split="test") for n in range(11)]
    rows = Path("my rows")
    told = router_pictures(rows, few)
    assert "at least 12 pictures of val and as many of test, and there are 20 and 11: the pictures are too few" in told
    told = router_pictures(rows, [*few, *(row(f"u{n}", split="train") for n in range(20))])
    assert "there are 20 and 11: `mvlm data split 'my rows' --val 25% --test 25% --overwrite` makes them" in told
    told = router_pictures(rows, [row(f"u{n}", split="train") for n in range(120)])
    assert told.endswith("`mvlm data split 'my rows'` makes them")
    told = router_pictures(rows, [*few, replace(few[-1], group="t11")])
    assert "fitted on 20 pictures (val) and judged on 12 (test)" in told
    assert "one answer in 5" in told
    assert "±2 points take 1,921 of test" in told


def test_data_check_says_all_of_it(folder, mvlm, monkeypatch):
    monkeypatch.chdir(folder.parent)
    exif = Image.Exif()
    exif[0x0112] = 1
    drawn_picture(1).save(folder / "1.tif", exif=exif)
    one, two = (b"\x12\x01\x03\x00" + count.to_bytes(4, "little") for count in (1, 2))
    (folder / "1.tif").write_bytes((folder / "1.tif").read_bytes().replace(one, two))
    (folder / "rows.jsonl").write_text(
        lines({"id": "a", **QUESTION, "metric": "number", "licence": "CC0"},
              {"id": "b", **QUESTION, "image": "1.tif", "split": "test"})
    )  # fmt: skip
    result = mvlm("data", "check", folder)
    assert result.exit_code == 1
    for says in (
        "  1 rows hold 'licence'", "scored by number (1 rows), exact (1 rows)", "a router wants at least 12",
        "1.tif: Metadata Warning", "1 faults", "\n  id a: number needs an answer that tells one, and there is 'it'",
    ):  # fmt: skip
        assert says in result.output, result.output
    assert result.output.count("Metadata Warning") == 1


def test_what_pillow_warns_of_is_said_once(folder):
    def warn(text: str, file: str) -> None:
        warnings.warn_explicit(text, UserWarning, file, 1, module="PIL.Image" if "PIL" in file else "other")

    said: list[str] = []

    def several() -> None:
        with picture_warnings(said.append):
            for text in ("of a picture", "of a second"):
                warn(text, Image.__file__)
            warn("another", "other.py")

    with pytest.warns(UserWarning, match="another") as others:
        several()
    assert [str(one.message) for one in others] == ["another"]
    assert said == ["Pillow warned 2 times of pictures (of a picture): `mvlm data check` names their rows"]
    with picture_warnings(said.append):
        pass
    assert len(said) == 1
