"""Rows as tasks of lmms-eval, and its tasks as rows that can be labelled."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from export.runtime.errors import MvlmError
from export.runtime.image import open_picture
from mvlm_core.data.reading import read_rows
from mvlm_core.evaluation.export_task import write_tasks
from mvlm_core.evaluation.import_task import answers_of, write_rows
from mvlm_core.evaluation.sample import read_messages
from tests.support.tiny import drawn_picture

NOT_INSTALLED = "lmms-eval is not installed: pip install --no-deps lmms-eval==0.7.3"


def docs(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_rows_become_two_tasks(scenes, tmp_path):
    counts = write_tasks(scenes, tmp_path, "test", tmp_path)
    rows = {row.id: row for row in read_rows(scenes) if row.split == "test"}
    assert counts["rows"] == len(rows) == len(docs(tmp_path, "docs.jsonl"))
    assert 0 < counts["rows_choice"] <= counts["rows"]
    for doc in docs(tmp_path, "choice_docs.jsonl"):
        assert doc["answer"] == rows[doc["id"]].answers[0]
        assert doc["choices"].count(doc["answer"]) == 1
        assert 2 <= len(set(doc["choices"])) == len(doc["choices"]) <= 4
        Image.open(doc["picture"]).verify()
    places = [doc["choices"].index(doc["answer"]) for doc in docs(tmp_path, "choice_docs.jsonl")]
    assert len(set(places)) > 1  # the right one does not always stand first
    assert "!function" in (tmp_path / "rows.yaml").read_text()


def test_pictures_that_stand_inside_rows_get_a_file(tmp_path):
    drawn_picture(3).save(tmp_path / "p.png")
    held = {"bytes": (tmp_path / "p.png").read_bytes(), "path": None}
    from datasets import Dataset

    line = {"id": "1", "image": held, "question": "what is it?", "answers": ["red"], "split": "test"}
    Dataset.from_list([line]).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "tasks").mkdir()
    assert write_tasks(tmp_path / "rows.parquet", tmp_path / "tasks", "test", tmp_path / "tasks") == {"rows": 1}
    doc = docs(tmp_path / "tasks", "docs.jsonl")[0]
    assert Path(doc["picture"]).read_bytes() == held["bytes"]
    assert not (tmp_path / "tasks" / "rows_choice.yaml").exists()  # one answer leaves nothing to choose


def test_questions_in_conversations_become_a_task_of_their_own(tmp_path):
    for name in ("a", "b"):
        drawn_picture(ord(name)).save(tmp_path / f"{name}.png")

    def says(role: str, *parts: str) -> dict:
        kinds = ["image" if part.endswith(".png") else "text" for part in parts]
        return {"role": role, "content": [{"type": k, k: part} for k, part in zip(kinds, parts, strict=True)]}

    talk = [
        says("system", "Be brief."), says("user", "a.png", "b.png", "alike?"), says("assistant", "no"),
        says("user", "why?"), says("assistant", "size"),
    ]  # fmt: skip
    lines = [
        {"id": "talk", "messages": talk, "split": "test"},
        {"id": "one", "image": "a.png", "question": "what?", "answers": ["red"], "split": "test"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "tasks").mkdir()
    counts = write_tasks(tmp_path / "rows.jsonl", tmp_path / "tasks", "test", tmp_path / "tasks")
    assert counts == {"rows": 1, "rows_chat": 2}  # a question about two pictures is asked once
    assert [doc["id"] for doc in docs(tmp_path / "tasks", "docs.jsonl")] == ["one"]
    first, second = docs(tmp_path / "tasks", "chat_docs.jsonl")
    assert (first["id"], first["answer"], second["id"], second["answer"]) == ("talk@0", "no", "talk@0#1", "size")
    utils = runpy.run_path(str(tmp_path / "tasks" / "utils.py"))
    asked = read_messages(utils["messages"](second))
    assert asked.question == "why?"
    assert [message["role"] for message in asked.messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in asked.messages[1]["content"]] == ["image", "image", "text"]
    shown = [picture.tobytes() for picture in asked.pictures]
    assert shown == [open_picture(tmp_path / f"{name}.png").tobytes() for name in ("a", "b")]
    assert shown == [picture.tobytes() for picture in utils["all_pictures"](second)]
    assert utils["score_answer"](second, ["Size"]) == {"score": 1.0}
    told = (tmp_path / "tasks" / "rows_chat.yaml").read_text()
    assert "doc_to_messages: !function 'utils.messages'" in told


def test_no_rows_of_the_split(mvlm, scenes, tmp_path):
    done = mvlm("data", "to-lmms-eval", "--rows", scenes, "--split", "nosuch", "--out", tmp_path / "tasks")
    assert done.exit_code == 2
    assert "has no rows of the split nosuch" in done.output
    assert not (tmp_path / "tasks").exists()


def task(target: str | int = "answer", wanted: object = "red") -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(doc_to_target=target), doc_to_target=lambda doc: wanted)


def test_the_answers_of_a_sample():
    people = [{"answer": "red", "answer_id": 1}] * 10
    assert answers_of(task(), {"answers": people, "answer": "blue"}) == ["red"] * 10
    assert answers_of(task(), {"answers": ["a", "b"]}) == ["a", "b"]
    assert answers_of(task(wanted="no"), {"answer": "no"}) == ["no"]
    assert answers_of(task(target="{{x}}", wanted=["a", "b"]), {"x": 1}) == ["a", "b"]
    # lmms-eval would take the word itself for the answer where the sample has no such column.
    with pytest.raises(MvlmError, match="it has no 'answer', which the task names as its target"):
        answers_of(task(), {"question": "?"})
    for nothing in (" ", None, [None]):
        with pytest.raises(MvlmError, match="it has no answer: the split that is scored by a server"):
            answers_of(task(wanted=nothing), {"answer": nothing})
    assert answers_of(task(wanted=4), {"answer": 4}) == ["4"]


@pytest.mark.parametrize(
    ("told", "fault"),
    [([{"answer": None}, {"answer": "a"}], "an answer is null"), ([{"answer": float("nan")}], "an answer is nan"),
     ([{"text": "a"}], "an answer is {'text': 'a'}, without an 'answer' in it"), ([["a"]], r"an answer is \['a'\]")],
)  # fmt: skip
def test_what_is_no_answer_is_not_written_as_one(told, fault):
    with pytest.raises(MvlmError, match=fault):
        answers_of(task(), {"answers": told, "answer": "x"})


def turned(folder: Path) -> Path:
    """A picture as a camera that was held upright stores it, and as 16 bits of grey."""
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.asarray(drawn_picture(3).convert("L")).astype(np.uint16) << 8
    Image.fromarray(wide).save(folder / "turned.png", exif=exif)
    return folder / "turned.png"


def test_pictures_are_read_as_everywhere_here(tmp_path, monkeypatch):
    """Upright, and 16 bits as 8: on the way to lmms-eval and back."""
    file = turned(tmp_path)
    line = {"id": "1", "image": file.name, "question": "?", "answers": ["!"], "split": "test"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(line))
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "rows.jsonl", tmp_path / "tasks", "test", tmp_path / "tasks")
    utils = runpy.run_path(str(tmp_path / "tasks" / "utils.py"))
    (shown,) = utils["pictures"](docs(tmp_path / "tasks", "docs.jsonl")[0])
    assert shown.tobytes() == open_picture(file).tobytes()

    (tmp_path / "back").mkdir()
    samples = [{"question": "?", "answer": "!", "pictures": [Image.open(file)]}]
    monkeypatch.setattr("mvlm_core.evaluation.import_task._task", lambda name, include: fake(samples))
    write_rows("t", tmp_path / "back", [], 1.0, None, lambda done, whole: None)
    (row,) = read_rows(tmp_path / "back")
    assert open_picture(row.image.read()).tobytes() == open_picture(file).tobytes()


def fake(samples: list[dict]) -> SimpleNamespace:
    return SimpleNamespace(
        eval_docs=samples, config=SimpleNamespace(doc_to_target="answer"), doc_to_target=lambda doc: doc["answer"],
        doc_to_text=lambda doc: f"{doc['question']}\nBriefly.", doc_to_visual=lambda doc: doc["pictures"],
    )  # fmt: skip


def test_a_task_becomes_rows_and_every_sample_that_is_none_is_named(tmp_path, monkeypatch):
    one, other = drawn_picture(1), drawn_picture(2)
    samples = [
        {"question": "a?", "answer": "x", "pictures": [one]}, {"question": "b?", "answer": "y", "pictures": [one]},
        {"question": "c?", "answer": "z", "pictures": [other]},
    ]  # fmt: skip
    monkeypatch.setattr("mvlm_core.evaluation.import_task._task", lambda name, include: fake(samples))
    told: list[tuple[int, int]] = []
    (tmp_path / "rows").mkdir()
    write_rows("t", tmp_path / "rows", [], 1.0, None, lambda done, whole: told.append((done, whole)))
    rows = read_rows(tmp_path / "rows")
    assert [(row.id, row.question, row.answers, row.task, row.split) for row in rows] == [
        ("t-0", "a?\nBriefly.", ("x",), "t", "val"), ("t-1", "b?\nBriefly.", ("y",), "t", "val"),
        ("t-2", "c?\nBriefly.", ("z",), "t", "val"),
    ]  # fmt: skip
    assert rows[0].group == rows[1].group != rows[2].group
    assert told == [(1, 3), (2, 3), (3, 3)]
    (tmp_path / "test").mkdir()
    assert write_rows("t", tmp_path / "test", [], 0.0, 2, lambda done, whole: None) == {"test": 2}
    samples.append({"question": "d?", "answer": "x", "pictures": [one, other]})
    samples.append({"question": "e?", "answer": "", "pictures": [one]})
    (tmp_path / "bad").mkdir()
    with pytest.raises(MvlmError) as raised:
        write_rows("t", tmp_path / "bad", [], 0.5, None, lambda done, whole: None)
    assert "t has 2 samples that are no rows" in str(raised.value)
    assert "sample 3: it shows 2 pictures" in str(raised.value)
    assert "sample 4: it has no answer" in str(raised.value)


def test_the_way_there_and_back(mvlm, scenes, tmp_path, monkeypatch):
    """The examples of both verbs, through lmms-eval itself: the same questions, answers and pictures come back."""
    pytest.importorskip("lmms_eval", reason=NOT_INSTALLED)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").symlink_to(scenes)
    for verb in ("to-lmms-eval", "from-lmms-eval"):
        (example,) = re.findall(r"^ +mvlm (.+)$", mvlm("data", verb, "--help").output, re.MULTILINE)
        done = mvlm(*shlex.split(example))
        assert done.exit_code == 0, done.output
    before = [row for row in read_rows(scenes) if row.split == "test"]
    after = read_rows(Path("benchmark"))
    assert [(row.question, row.answers) for row in after] == [(row.question, row.answers) for row in before]
    assert {row.split for row in after} == {"val", "test"}
    first = [Image.open(row.image.read()).convert("RGB").tobytes() for row in (before[0], after[0])]
    assert first[0] == first[1]
    choice = mvlm("data", "from-lmms-eval", "rows_choice", "--include-path", "tasks", "--out", "other")
    assert choice.exit_code == 2
    assert "scores given answers: name a task whose answers are generated" in choice.output
    assert not Path("other").exists()
    told = yaml.safe_load(Path("tasks/rows.yaml").read_text().replace("!function ", ""))
    assert told["test_split"] == "test"
    shutil.rmtree("tasks")
    assert mvlm("data", "from-lmms-eval", "rows", "--include-path", "tasks", "--out", "other").exit_code == 2
