"""Labels scored by another metric: the answers stay, and what they are held against is kept beside them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from export.runtime.artefact import read_artefact, sha256_file
from export.runtime.errors import MvlmError
from export.runtime.views.scale import Scale, coarse_to_fine
from mvlm_core.scoring import Metric, Reference
from mvlm_core.scoring.of_rows import Asked, metrics_of, score_row

REFERENCES_FILE = "references.parquet"


@dataclass(frozen=True)
class _Question:
    """A labelled row, as far as it is scored."""

    id: str
    task: str | None
    metric: str | None
    reference: Reference


def reference_rows(rows: Sequence[Asked]) -> list[dict[str, Any]]:
    """What the answers to rows are held against, as references.parquet holds it."""
    return [
        {"id": row.id, "metric": row.metric, "answers": list(row.reference.answers), "votes": list(row.reference.votes),
         "options": list(row.reference.options)}
        for row in rows
    ]  # fmt: skip


def rescored(labels: Path, said: Sequence[str]) -> tuple[pa.Table, dict[str, Any]]:
    """labels.parquet of a folder as it were if it had been labelled with `said`, and what labels.json would say of it.

    `said` are `METRIC` or `TASK=METRIC`; where none is for all rows, other tasks keep what they were labelled by. What
    the model gave to the reference answer is kept where that is the same one. Raises `MvlmError` for labels that keep
    no references, and for metrics that cannot score the rows.
    """
    facts = read_artefact(labels, "labels")
    wanted = list(said) if any("=" not in word for word in said) else [*facts.get("metrics_said", []), *said]
    table = pq.read_table(labels / "labels.parquet")
    lines = table.select(["id", "task", "scale", "sample", "metric", "prediction", "answer"]).to_pylist()
    questions = _questions(labels, facts, {line["id"]: line["task"] for line in lines})
    metrics = metrics_of(list(questions.values()), wanted)
    finest = str(coarse_to_fine(Scale.parse(str(scale)).word for scale in facts["scales"])[-1])
    own = {line["id"]: line["prediction"] for line in lines if (line["scale"], line["sample"]) == (finest, 0)}
    columns: dict[str, list[Any]] = {name: [] for name in ("metric", "score", "answer", "kept")}
    for line in lines:
        metric, question = metrics.of[line["id"]], questions[line["id"]]
        agreeing = metric.name == "agreement"
        columns["metric"].append(str(metric))
        columns["score"].append(score_row(question, metric, line["prediction"], finest=own[line["id"]]))
        columns["answer"].append(own[line["id"]] if agreeing else question.reference.answers[0])
        columns["kept"].append(agreeing == _agreed(line["metric"]))
    return _replaced(table, columns), {"metrics_said": wanted, "rescored": wanted, **metrics.facts()}


def _agreed(metric: str) -> bool:
    return metric.partition(":")[0] == Metric("agreement").name


def _questions(labels: Path, facts: dict[str, Any], tasks: dict[str, str | None]) -> dict[str, _Question]:
    file = labels / REFERENCES_FILE
    if REFERENCES_FILE not in facts["files"]:
        raise MvlmError(
            f"{labels} keeps no references, as labels of before: label again, or leave --metric out, which fits by"
            " what they were labelled by"
        )
    if not file.is_file() or sha256_file(file) != facts["files"][REFERENCES_FILE]:
        raise MvlmError(f"{file} is missing or was changed since it was written: label again")
    return {
        row["id"]: _Question(row["id"], tasks[row["id"]], row["metric"],
                             Reference(tuple(row["answers"]), tuple(row["votes"]), tuple(row["options"])))
        for row in pq.read_table(file).to_pylist()
    }  # fmt: skip


def _replaced(table: pa.Table, columns: dict[str, list[Any]]) -> pa.Table:
    """The lines with other scores, and nothing said of a reference answer that is another one now."""
    kept = pa.array(columns.pop("kept"), pa.bool_())
    for name, values in columns.items():
        where = table.schema.get_field_index(name)
        table = table.set_column(where, name, pa.array(values, table.schema.field(name).type))
    for name in ("loss", "probability"):
        where = table.schema.get_field_index(name)
        one = table[name].combine_chunks()
        table = table.set_column(where, name, pc.if_else(kept, one, pa.scalar(None, one.type)))
    return table
