"""A task of lmms-eval as rows, so that `mvlm label` can make the oracle's table of a real benchmark."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from PIL import Image

from export.runtime.errors import MvlmError
from export.runtime.image import open_picture
from mvlm_core.data.files import ROWS_FILE
from mvlm_core.data.values import shown, text_of

from .plugin import MODEL

_HASHES = 2**32


def write_rows(
    name: str, out: Path, include: Sequence[Path], val_share: float, limit: int | None,
    progress: Callable[[int, int], None],
) -> Mapping[str, int]:  # fmt: skip
    """Write a rows folder and return how many rows are of each split. `progress` is told (samples read, in all).

    A sample's question is what lmms-eval would ask (`doc_to_text`, with the words that the task puts behind it); its
    answers are those of its `answers`, or failing that its target. Samples about one picture are of one split, which is
    drawn from the picture, `val_share` of them for fitting a router. Raises `MvlmError` for a task that scores given
    answers, and naming the samples that are not one question about one picture with answers.
    """
    task = _task(name, include)
    docs = task.eval_docs
    most = len(docs) if limit is None else min(limit, len(docs))
    (out / "pictures").mkdir()
    faults, counts = [], Counter[str]()
    with (out / ROWS_FILE).open("w", encoding="utf-8") as file:
        for number in range(most):
            try:
                row = _row(task, name, number, docs[number], val_share, out)
            except MvlmError as error:
                faults.append(f"sample {number}: {error}")
            else:
                counts[row["split"]] += 1
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            progress(number + 1, most)
    if faults:
        raise MvlmError(f"{name} has {len(faults)} samples that are no rows:\n" + "\n".join(f"  {f}" for f in faults))
    return counts


def _task(name: str, include: Sequence[Path]) -> Any:
    """Importing lmms-eval takes seconds, so it is done here."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager("ERROR", include_path=[str(folder) for folder in include] or None, model_name=MODEL)
    task = get_task_dict([name], manager)[name]
    if isinstance(task, dict) or task.OUTPUT_TYPE != "generate_until":
        raise MvlmError(f"{name} is a group, or scores given answers: name a task whose answers are generated")
    return task


def _row(task: Any, name: str, number: int, doc: Mapping[str, Any], val_share: float, out: Path) -> dict[str, Any]:
    pictures = task.doc_to_visual(doc) or []
    if len(pictures) != 1 or not isinstance(pictures[0], Image.Image):
        raise MvlmError(f"it shows {len(pictures)} pictures: only samples about one become rows here")
    data, question = _encoded(pictures[0]), text_of(task.doc_to_text(doc), "the question")
    key = hashlib.sha256(data).hexdigest()
    (out / "pictures" / f"{key[:16]}.png").write_bytes(data)
    return {
        "id": f"{name}-{number}", "image": f"pictures/{key[:16]}.png", "question": question,
        "answers": answers_of(task, doc), "task": name, "group": key[:16],
        "split": "val" if crc32(key.encode()) / _HASHES < val_share else "test",
    }  # fmt: skip


def answers_of(task: Any, doc: Mapping[str, Any]) -> list[str]:
    """Every right answer of a sample: its list `answers` (VQA's form, with one for each person), or its target."""
    told = doc.get("answers")
    if isinstance(told, list) and told:
        if unnamed := next((answer for answer in told if isinstance(answer, dict) and "answer" not in answer), None):
            raise MvlmError(f"an answer is {shown(unnamed)}, without an 'answer' in it")
        found = [answer["answer"] if isinstance(answer, dict) else answer for answer in told]
    else:
        target = task.config.doc_to_target
        if isinstance(target, str) and target not in doc and "{{" not in target:
            raise MvlmError(f"it has no {target!r}, which the task names as its target")
        wanted = task.doc_to_target(doc)
        found = wanted if isinstance(wanted, list) else [wanted]
    none_known = all(answer is None for answer in found)
    answers = [] if none_known else [text_of(answer, "an answer") for answer in found]
    answers = [answer for answer in answers if answer.strip()]
    if not answers:
        raise MvlmError("it has no answer: the split that is scored by a server holds none")
    return answers


def _encoded(picture: Image.Image) -> bytes:
    """As PNG, upright and in 8 bits, as every picture is read here."""
    held = io.BytesIO()
    open_picture(picture).save(held, "PNG")
    return held.getvalue()
