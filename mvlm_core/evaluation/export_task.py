"""Rows as tasks of lmms-eval: single questions whose answers are generated, the same with given answers to choose from
by likelihood, and questions in the conversation in which they stand.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import yaml

from export.runtime.errors import MvlmError
from mvlm_core.data.labelled import asked_once
from mvlm_core.data.pictures import PictureFile, PictureSource
from mvlm_core.data.reading import read_rows
from mvlm_core.data.row import Row
from mvlm_core.scoring.of_rows import metrics_of

GENERATE, CHOOSE, CONVERSE = "rows", "rows_choice", "rows_chat"
_CHOICES = 4
_DOCS = "docs.jsonl"
# The functions that the YAML files name; lmms-eval loads them from the file beside.
_UTILS = '''"""What lmms-eval asks of a row, and how its answer is scored: as `mvlm label` scores it."""

import json

from export.runtime.image import open_picture
from mvlm_core.scoring import score


def pictures(doc):
    return [open_picture(doc["picture"])]


def all_pictures(doc):
    return [open_picture(picture) for picture in doc["pictures"]]


def messages(doc):
    """The conversation before the answer, with its pictures in place."""
    shown = iter(all_pictures(doc))
    told = json.loads(doc["messages"])
    for message in told:
        for part in message["content"]:
            if part["type"] == "image":
                part["url"] = next(shown)
    return told


def score_answer(doc, results):
    told = {name: doc[name] for name in ("metric", "votes", "options")}
    return {"score": score(results[0], doc["answers"], **told)}
'''


class _Function(str):
    """A name in utils.py, which lmms-eval looks up."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))

_SHARED = {"test_split": "test", "doc_to_text": "question", "doc_to_visual": _Function("utils.pictures")}
_GENERATE_TASK = {
    "output_type": "generate_until", "doc_to_target": "answer", "process_results": _Function("utils.score_answer"),
    "generation_kwargs": {"max_new_tokens": 16, "until": ["\n\n"]},
    "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
_CONVERSE_TASK = _GENERATE_TASK | {
    "doc_to_visual": _Function("utils.all_pictures"), "doc_to_messages": _Function("utils.messages"),
}  # fmt: skip
_CHOOSE_TASK = {
    "output_type": "multiple_choice", "doc_to_target": "answer", "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip


def write_tasks(rows: Path, out: Path, split: str, lies_at: Path) -> Mapping[str, int]:
    """Write a folder for `--include-path` and return how many samples each task has; `lies_at`: where it will lie.

    A question with a system text, with turns before it or with several pictures is one of the task `rows_chat`. Raises
    `MvlmError` when no row is of the split. Rows that ask nothing about a picture are refused.
    """
    asked = [row for row in asked_once([r for r in read_rows(rows) if r.split == split]) if row.answers]
    if not asked:
        raise MvlmError(f"{rows} has no rows of the split {split}: name another with --split")
    single = [row for row in asked if row.within is None]
    choices = _choices(single)
    metrics = metrics_of(asked).of
    docs = [_doc(row, choices.get(row.id, []), str(metrics[row.id]), out, lies_at) for row in single]
    chats = [_chat_doc(row, str(metrics[row.id]), out, lies_at) for row in asked if row.within]
    tasks = (
        (GENERATE, _DOCS, docs, _GENERATE_TASK),
        (CONVERSE, f"chat_{_DOCS}", chats, _CONVERSE_TASK),
        (CHOOSE, f"choice_{_DOCS}", [doc for doc in docs if doc["choices"]], _CHOOSE_TASK),
    )
    (out / "utils.py").write_text(_UTILS, encoding="utf-8")
    for name, file, held, task in tasks:
        if held:
            _write_docs(out / file, held)
            _write_task(out, name, lies_at / file, task)
    return {name: len(held) for name, _, held, _ in tasks if held}


def _write_task(out: Path, name: str, docs: Path, task: Mapping[str, Any]) -> None:
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(docs)}}}
    text = yaml.dump({"task": name, **data, **_SHARED, **task}, Dumper=_Dumper, sort_keys=False)
    (out / f"{name}.yaml").write_text(text, encoding="utf-8")


def _write_docs(file: Path, docs: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in docs), encoding="utf-8")


def _chat_doc(row: Row, metric: str, out: Path, lies_at: Path) -> dict[str, Any]:
    """A question in its conversation. The messages are spelled, as `datasets` would give all of them one shape."""
    assert row.within is not None
    whole = row.within.row
    pictures = [str(_picture_file(picture, out, lies_at)) for picture in whole.pictures]
    told = {name: value for name, value in _doc(row, [], metric, out, lies_at).items() if name != "picture"}
    return told | {"pictures": pictures, "messages": json.dumps(whole.messages()[:-1], ensure_ascii=False)}


def _doc(row: Row, choices: Sequence[str], metric: str, out: Path, lies_at: Path) -> dict[str, Any]:
    return {
        "id": row.id, "picture": str(_picture_file(row.image, out, lies_at)), "question": row.question,
        "answer": row.answers[0], "answers": list(row.answers), "choices": list(choices), "task": row.task or "",
        "metric": metric, "votes": list(row.reference.votes), "options": list(row.reference.options),
    }  # fmt: skip


def _picture_file(picture: PictureSource, out: Path, lies_at: Path) -> Path:
    """The file of a picture; one that stands inside a row gets one."""
    if isinstance(picture, PictureFile):
        return picture.path.absolute()
    name, held = Path("pictures") / picture.key, picture.read()
    if not isinstance(held, bytes):
        raise MvlmError(f"{picture} is a clip, and a task shows pictures: leave its rows out")
    if not (out / name).is_file():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(held)
    return lies_at / name


def _choices(rows: Sequence[Row]) -> dict[str, list[str]]:
    """For each row its answer among others that rows of its kind have; an order that depends on the row alone."""
    of_kind: dict[str | None, set[str]] = defaultdict(set)
    for row in rows:
        of_kind[row.task].add(row.answers[0])
    found = {}
    for row in rows:
        others = sorted(of_kind[row.task] - set(row.answers), key=lambda other: crc32(f"{row.id} {other}".encode()))
        offered = [row.answers[0], *others[: _CHOICES - 1]]
        if len(offered) > 1:
            found[row.id] = sorted(offered, key=lambda answer: crc32(f"{answer} {row.id}".encode()))
    return found
