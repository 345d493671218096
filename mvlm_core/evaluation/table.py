"""One table: benchmarks by scale, with what the papers report under what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .benchmarks import Benchmark, known
from .lmms_runs import Outcome


def table(outcome: Outcome, benchmarks: Sequence[Benchmark], scales: Sequence[str]) -> str:
    """Markdown. A cell at `auto` says behind @ how many tokens were shown in the mean. What nobody reports is empty."""
    lines = [_line(["benchmark", "", *scales]), "|---" * (2 + len(scales)) + "|"]
    for benchmark in benchmarks:
        lines += [_line(cells) for cells in _rows(outcome, benchmark, scales)]
    return "\n".join([*lines, "", *_notes(benchmarks, scales), ""])


def _rows(outcome: Outcome, benchmark: Benchmark, scales: Sequence[str]) -> Iterator[list[str]]:
    measured = outcome.scores.get(benchmark.task, {})
    metrics = [benchmark.metric] if benchmark.metric else sorted(measured)
    for metric in metrics:
        found = measured.get(metric, {})
        cells = [_cell(found.get(scale), benchmark, _spent(outcome, benchmark.task, scale)) for scale in scales]
        yield [f"{benchmark.title}, {metric}", "measured", *cells]
    for paper in known().papers:
        scores = paper.scores.get(benchmark.name, {})
        told = [f"{scores[int(s)]:g}" if s.isdecimal() and int(s) in scores else "" for s in scales]
        if any(told):
            yield ["", paper.title, *told]


def _cell(value: float | None, benchmark: Benchmark, spent: str) -> str:
    return "" if value is None else f"{benchmark.times * value:.4g}{spent}"


def _spent(outcome: Outcome, task: str, scale: str) -> str:
    return f" @{outcome.mean_tokens[task][scale]:.3g}" if scale == "auto" else ""


def _notes(benchmarks: Sequence[Benchmark], scales: Sequence[str]) -> Iterator[str]:
    numbers = {int(scale) for scale in scales if scale.isdecimal()}
    shown = {benchmark.name for benchmark in benchmarks}
    for paper in known().papers:
        if any(numbers & set(paper.scores[name]) for name in shown & set(paper.scores)):
            yield f"- {paper.title}: {paper.source}"
    for benchmark in benchmarks:
        if benchmark.note:
            yield f"- {benchmark.title}: {benchmark.note}"
    if any(benchmark.dataset and benchmark.revision is None for benchmark in benchmarks):
        yield "- the revision of the data is not pinned: neither the papers nor lmms-eval's tasks name one"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
