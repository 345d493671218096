"""What 8 and 4 bits cost a trained model, scale by scale: the demo's run against its bundles, on pictures of its test.

`python -m benchmarks.runtime.quality --demo demo` writes the decoder in each precision, lets the runtime answer the
same questions at every scale, and pairs each answer's score with the one that torch got when the run was labelled. The
intervals are of that difference, resampled by picture: `verify`'s own arithmetic on more rows than an export can wait
for. Float32 stands beside the others as a control.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet

from benchmarks.machine import keep
from export.bundle.files import write_bundle
from export.bundle.source import Source, read_source
from export.bundle.tolerance import points_lost
from export.graphs.targets import plan
from export.runtime import Runtime
from mvlm_core.data.reading import read_rows
from mvlm_core.data.row import Row, questions_of
from mvlm_core.scoring import score

PRECISIONS = (
    "float32", "int8", "int4", "int4-fast", "prefill=int8,decode=int4", "prefill=int8,decode=int4-fast",
)  # fmt: skip
_MAX_NEW_TOKENS = 32


@click.command()
@click.option("--demo", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--pictures", type=int, default=300, show_default=True, help="Of the test split, spread evenly.")
@click.option("--precision", "precisions", multiple=True, default=PRECISIONS, help="Left out: all of them.")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--keep/--no-keep", "kept", default=True, help="Write results/quality.json.")
def main(demo: Path, pictures: int, precisions: tuple[str, ...], threads: int, kept: bool) -> None:
    """Measure every precision, print a table, and keep the figures."""
    known = torch_scores(demo / "labels")
    scales = sorted({m for _, m in known})
    groups = sampled(demo / "rows", known, pictures)
    source = read_source(demo / "run", None, scales)
    figures = {}
    for precision in precisions:
        started = time.perf_counter()
        scored = list(answers(source, precision, groups, scales, threads))
        figures[precision] = {str(m): compared([one for one in scored if one[1] == m], known) for m in scales}
        click.echo(f"{precision}, {time.perf_counter() - started:.0f} s")
        for m, facts in figures[precision].items():
            lost = facts["points_lost"]
            click.echo(
                f"{m:>6} tokens: {100 * facts['bundle']:.1f} %, torch {100 * facts['torch']:.1f} %:"
                f" {lost['points']:+.2f} points lost [{lost['low']:+.2f}, {lost['high']:+.2f}]"
            )
    if kept:
        command = f"python -m benchmarks.runtime.quality --pictures {pictures}"
        rows = sum(len(rows) for rows in groups)
        click.echo(keep("quality", command, model_sha256=source.model_sha256, pictures=pictures, rows=rows,
                        interval="95 %, paired, resampled by picture", precisions=figures))  # fmt: skip


def torch_scores(labels: Path) -> dict[tuple[str, int], float]:
    """What torch scored when the run was labelled, by question and scale: the test split's."""
    table = pyarrow.parquet.read_table(labels / "labels.parquet", filters=[("split", "=", "test")])
    columns = (table[name].to_pylist() for name in ("id", "num_visual_tokens", "score"))
    return {(key, m): value for key, m, value in zip(*columns, strict=True)}


def sampled(rows: Path, known: dict[tuple[str, int], float], pictures: int) -> list[list[Row]]:
    """Questions that were labelled, by picture; so many pictures, spread evenly."""
    asked = {key for key, _ in known}
    by_picture: dict[str, list[Row]] = {}
    for row in read_rows(rows):
        if row.split == "test":
            for question in questions_of(row):
                if question.id in asked:
                    by_picture.setdefault(question.group, []).append(question)
    groups = list(by_picture.values())
    picked = np.linspace(0, len(groups) - 1, min(pictures, len(groups))).round().astype(int)
    return [groups[i] for i in picked]


def answers(
    source: Source, precision: str, groups: Sequence[Sequence[Row]], scales: Sequence[int], threads: int
) -> Iterator[tuple[Row, int, float]]:
    """Each question at each scale, and what the bundle's answer scored."""
    with tempfile.TemporaryDirectory() as name:
        asked = plan("ort-cpu", precision, None, source.positions)
        write_bundle(source, asked, Path(name), lambda steps: None)
        runtime = Runtime.load(name, threads=threads)
        with click.progressbar(groups, label=f"{precision:<30}") as bar:
            for rows in bar:
                view = runtime.look(rows[0].image.read())
                for m in scales:
                    for row in rows:
                        answer = view.ask(row.question, scale=m, max_new_tokens=_MAX_NEW_TOKENS)
                        yield row, m, score(answer.text, row.answers)


def compared(scored: Sequence[tuple[Row, int, float]], known: dict[tuple[str, int], float]) -> dict[str, Any]:
    """Accuracies of one scale, and the difference with its interval."""
    torch_side = [known[row.id, m] for row, m, _ in scored]
    file_side = [value for _, _, value in scored]
    lost = points_lost(torch_side, file_side, [row.group for row, _, _ in scored])
    return {
        "torch": float(np.mean(torch_side)), "bundle": float(np.mean(file_side)),
        "otherwise": sum(a != b for a, b in zip(torch_side, file_side, strict=True)), "points_lost": asdict(lost),
    }  # fmt: skip


if __name__ == "__main__":
    main()
