"""Rows that are longer than the model: named before a step, a graph or an answer is spent on any."""

import json
import shutil
from pathlib import Path

import pytest

from export.runtime.errors import MvlmError
from mvlm_core.data.row import PicturePlace, Row, Turn
from mvlm_core.modeling.chat_templates import TEMPLATES
from mvlm_core.train.fitting import Fitting
from tests.conftest import rewrite_rows
from tests.support.tiny import SMALL_MODEL, tiny_processor

FINEST = 9
LONG = "what colour is the star in the middle of the picture? " * 60
SHORT = (*SMALL_MODEL, "stages.0.steps=1", "stages.1.steps=1", "stages.1.show=[36]", "stages.1.evaluate_every=null")


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def row(name: str, *questions: str, answer: str = "red") -> Row:
    turns = tuple(Turn((PicturePlace(0),) * (n == 0) + (text,), (answer,)) for n, text in enumerate(questions))
    return Row(name, (), turns, None, name, "train")


def kinds() -> list[Row]:
    words = ("red", "what colour", "형 ☃ é", "x" * 150, "3 14 15 92")
    return [row(f"{n}.{m}", *[text] * n, answer=text) for n in range(1, 4) for m, text in enumerate(words)]


@pytest.mark.parametrize("positions", range(8, 260, 12))
@pytest.mark.parametrize("max_tokens", [None, 40])
def test_the_quick_way_finds_what_encoding_every_row_finds(processor, positions, max_tokens):
    fitting = Fitting(processor, max_tokens=max_tokens, positions=positions)
    slow = []
    for one in kinds():
        try:
            fitting.encode(one, (FINEST,))
        except MvlmError as error:
            slow.append(str(error))
    assert fitting.faults(kinds(), (FINEST,)) == slow


def test_most_rows_are_not_encoded_for_it(processor, monkeypatch):
    fitting = Fitting(processor, max_tokens=None, positions=4096)
    encoded, encode = [], processor.encode
    monkeypatch.setattr(type(processor), "encode", lambda self, told: (encoded.append(told), encode(told))[1])
    assert fitting.faults([row(f"{n}", "what colour is it?") for n in range(50)], (FINEST,)) == []
    assert len(encoded) == 1


def test_a_template_that_marks_no_answer(processor):
    unmarked = tiny_processor()
    text = TEMPLATES["mvlm"].text.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    unmarked.chat_template = unmarked.tokenizer.chat_template = text
    for positions in (None, 4096):
        fitting = Fitting(unmarked, max_tokens=None, positions=positions)
        (fault,) = fitting.faults([row("a", "what?")], (FINEST,))
        assert fault == "id a: nothing is supervised: the chat template marks no answer of it"


@pytest.fixture
def long_rows(scenes, tmp_path) -> Path:
    """The drawn benchmark with one long row to learn, one to judge by and one to label."""
    rows = tmp_path / "rows"
    shutil.copytree(scenes, rows)
    told: dict[str, str] = {}

    def lengthen(lines: list[dict]) -> list[dict]:
        for line in lines:
            if told.setdefault(line["split"], line["id"]) == line["id"]:
                line["question"] = LONG
        return lines

    rewrite_rows(rows, lengthen)
    return rows


def too_long(folder: Path, split: str) -> str:
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return next(line["id"] for line in lines if line["split"] == split and line["question"] == LONG)


def test_training_and_the_check_name_them_before_anything_is_written(scenes, long_rows, tmp_path, mvlm):
    config, name = scenes.parent / "train.yaml", too_long(long_rows, "train")
    small = (*SHORT, f"rows={long_rows}", "model.text.max_position_embeddings=400")
    done = mvlm("train", config, *small, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert f"stage answers: 1 rows of {long_rows} do not fit\n  id {name}: " in done.output
    assert "tokens at scale 36 are more than the 400 positions of the language model: set max_tokens" in done.output
    judged = mvlm("train", config, *small, "stages.1.evaluate_every=1", "--out", tmp_path / "run")
    assert "2 rows of" in judged.output
    assert f"id {too_long(long_rows, 'val')}: " in judged.output
    assert not (tmp_path / "run").exists()

    (tmp_path / "small.yaml").write_text(config.read_text().replace("1024", "400"))
    checked = mvlm("data", "check", long_rows, "--config", tmp_path / "small.yaml")
    assert checked.exit_code == 1
    assert [f"id {too_long(long_rows, split)}: " in checked.output for split in ("train", "val", "test")] == [True] * 3


def test_questions_that_run_on_must_fit_together(scenes, tmp_path, mvlm):
    small = (*SHORT, "model.text.max_position_embeddings=100", "stages.1.running_share=0.5")
    done = mvlm("train", scenes.parent / "train.yaml", *small, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "are more than the 100 positions" in done.output
    done = mvlm("train", scenes.parent / "train.yaml", *small[:-1], "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_labelling_names_them(scenes, long_rows, tmp_path, mvlm):
    small = (*SHORT, "model.text.max_position_embeddings=400")
    assert mvlm("train", scenes.parent / "train.yaml", *small, "--out", tmp_path / "run").exit_code == 0
    done = mvlm("label", tmp_path / "run", "--rows", long_rows, "--scales", "9,36", "--out", tmp_path / "labels")
    assert done.exit_code == 2
    assert "2 rows at scale 36, with an answer of 16, are more than the 400 positions" in done.output
    assert f"\n  id {too_long(long_rows, 'val')}: " in done.output
    assert not list(tmp_path.glob("*labels*"))
