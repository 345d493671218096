"""Which metric scores each row: the row's own, else the one that a verb was given, else one guessed for its task."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from export.runtime.errors import MvlmError, listed

from .metrics import Metric, Reference, fault, guess, read_metric, score_with

_NAMED = 8


class Asked(Protocol):
    """What is scored of a row: a question of a task, what answers it, and the metric that the row names itself."""

    @property
    def id(self) -> str: ...
    @property
    def task(self) -> str | None: ...
    @property
    def metric(self) -> str | None: ...
    @property
    def reference(self) -> Reference: ...


@dataclass(frozen=True)
class RowMetrics:
    """The metric of each row by its id, and the tasks whose metric was guessed."""

    of: Mapping[str, Metric]
    guessed: Mapping[str, Metric]

    def counts(self) -> dict[str, int]:
        """How many rows each metric scores, the commonest first."""
        return dict(Counter(map(str, self.of.values())).most_common())

    def facts(self) -> dict[str, dict[str, Any]]:
        """What an artefact says of it: rows by metric, and the tasks whose metric was guessed."""
        return {"metrics": self.counts(), "metrics_guessed": {task: str(m) for task, m in self.guessed.items()}}


def scored_by(facts: Mapping[str, Any]) -> str:
    """The metrics of an artefact for people: what scored how many rows, and what of it was guessed."""
    counted = ", ".join(f"{name} ({count:,} rows)" for name, count in facts["metrics"].items())
    tasks = ", ".join(f"{name} for {task}" if task else name for task, name in facts["metrics_guessed"].items())
    return f"scored by {counted}" + (f"; guessed: {tasks} (say it with --metric, or in the rows)" if tasks else "")


def metrics_of(rows: Sequence[Asked], said: Sequence[str] = ()) -> RowMetrics:
    """The metric of each row. `said` holds `METRIC` for all rows that name none, or `TASK=METRIC` for those of a task.

    Raises `MvlmError` for a metric that there is not, a task that no row has, and rows that their metric cannot score.
    """
    metrics = choose_metrics(rows, said)
    if faults := unscorable(rows, metrics):
        raise MvlmError(
            f"{len(faults)} rows cannot be scored as asked; mend them, or name another metric with"
            f" --metric{listed(faults, most=_NAMED)}"
        )
    return metrics


def choose_metrics(rows: Sequence[Asked], said: Sequence[str] = ()) -> RowMetrics:
    """The metric of each row, whether it can score it or not. Raises `MvlmError` for a metric that there is not, and a
    task that no row has."""
    by_task = dict(_read(text) for text in said)
    strange = sorted(task for task in by_task if task and task not in {row.task for row in rows})
    if strange:
        raise MvlmError(f"--metric names {', '.join(strange)}, and no row is of that task")
    silent: dict[str, list[Asked]] = defaultdict(list)
    for row in rows:
        if row.metric is None and not {row.task or "", ""} & by_task.keys():
            silent[row.task or ""].append(row)
    guessed = {task: guess([row.reference for row in members]) for task, members in silent.items()}
    return RowMetrics({row.id: _metric(row, by_task, guessed) for row in rows}, guessed)


def metrics_like(rows: Sequence[Asked], said: Sequence[str]) -> RowMetrics:
    """The metrics of some rows as others were labelled by: what was `said` then, where it concerns these and can score
    them all, else guessed. Raises `MvlmError` for rows that their own metric cannot score."""
    tasks = {"", *(row.task for row in rows)}
    found = choose_metrics(rows, [text for text in said if _read(text)[0] in tasks])
    return metrics_of(rows) if unscorable(rows, found) else found


def unscorable(rows: Sequence[Asked], metrics: RowMetrics) -> list[str]:
    """The rows that no answer could be right for by their metric, a line each."""
    return [f"id {row.id}: {why}" for row in rows if (why := fault(metrics.of[row.id], row.reference))]


def _read(text: str) -> tuple[str, Metric]:
    task, divided, name = text.rpartition("=")
    return (task if divided else ""), read_metric(name)


def _metric(row: Asked, by_task: Mapping[str, Metric], guessed: Mapping[str, Metric]) -> Metric:
    if row.metric is not None:
        return read_metric(row.metric)
    task = row.task or ""
    told = by_task.get(task) or by_task.get("") or guessed[task]
    return told if row.reference.answers or told.name == "agreement" or not guessed.get(task) else Metric("agreement")


def score_row(row: Asked, metric: Metric, prediction: str, *, finest: str) -> float:
    """The score of an answer to a row; where the metric is agreement, `finest` is what it is to agree with."""
    reference = row.reference
    if metric.name == "agreement":
        reference = Reference((finest,), options=reference.options)
    return score_with(metric, prediction, reference)
