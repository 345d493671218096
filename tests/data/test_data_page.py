"""Every example of the page on data formats, run: written, read as told, and passed by `mvlm data check`."""

import re
from pathlib import Path

import datasets
import pytest
import yaml

from export.runtime.image import open_picture
from mvlm_core.data.files import _PICTURES, _SPLIT_WORDS
from mvlm_core.data.formats import _FORMATS
from mvlm_core.data.reading import read_rows
from mvlm_core.data.row import PicturePlace
from tests.support.tiny import drawn_picture

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = {name: (kind, text) for kind, name, text in re.findall(r"```(\w+) (\S+)\n(.*?)```", PAGE, re.DOTALL)}
P0, P1 = PicturePlace(0), PicturePlace(1)
# Of each example: the rows' ids, and what is asked in them.
SAYS = {
    "rows.jsonl": {"1": [(P0, "what colour is it?")], "2": [("what is two and two?",)]},
    "llava.json": {
        "000000033471": [(P0, "What is shown?"), ("What colour is it?",)],
        "000000033471~2": [("Is", P0, "brighter than", P1, "?")],
    },
    "chat.jsonl": {
        "a": [(P0, P1, "Which is the moon?")], "b": [(P0, "Does it say <image>?")], "c": [(P0, "One pixel?")],
    },
    "cauldron.jsonl": {"x": [(P0, "What is it?"), ("Is it red?",)]},
    "table.parquet": {"1": [(P0, "What is it?")]},
    "train-0000.tar": {"s1": [(P0, "What is it?")]},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate(("star.png", "moon.png")):
        drawn_picture(seed).save(tmp_path / name)
    return tmp_path


def write(folder: Path, name: str) -> Path:
    kind, text = EXAMPLES[name]
    if kind == "python":
        exec(compile(text, name, "exec"), {})
    else:
        (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("name", SAYS)
def test_examples_are_read_as_the_page_says(folder, scenes, mvlm, name):
    file = write(folder, name)
    rows = read_rows(file)
    assert {row.id: [turn.content for turn in row.turns] for row in rows} == SAYS[name]
    for row in rows:
        for picture in row.pictures:
            open_picture(picture.read())
    config = yaml.safe_load((scenes.parent / "train.yaml").read_text())
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    result = mvlm("data", "check", file)
    assert result.exit_code == 0, result.output
    assert "no fault" in result.output


def test_every_example_is_run_and_every_format_has_one():
    assert set(EXAMPLES) == set(SAYS)
    for name in _FORMATS:
        assert f"`{name}`" in PAGE
        assert any(f'"{name}"' in text for _, text in EXAMPLES.values())
    for name in ("id", "image", "images", "split", "group", "task", *set(_SPLIT_WORDS.values())):
        assert f"`{name}`" in PAGE


def test_answers_and_system_text_of_the_examples(folder):
    question, none = read_rows(write(folder, "rows.jsonl"))
    assert question.turns[0].answers == ("red", "dark red")
    assert none.turns[0].answers == ("four",)
    assert read_rows(write(folder, "chat.jsonl"))[0].system == "Be brief."
    assert set(_PICTURES) >= {".jpg", ".png", ".webp"}
