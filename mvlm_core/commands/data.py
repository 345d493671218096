"""The verb `data`, with what goes between rows and lmms-eval's tasks."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from export.runtime.artefact import output_folder, refuse_if_filled
from export.runtime.errors import MvlmError
from mvlm_core.progress import Bars

from .benchmark import INCLUDE
from .train_label import OVERWRITE, data, out_option, rows_option, say_next

__all__ = ["data"]


@data.command()
@click.argument("rows", type=click.Path(path_type=Path), default="rows")
@click.option("--val", default="10%", show_default=True, help="Share of the pictures that the router is fitted on.")
@click.option("--test", default="10%", show_default=True, help="Share of the pictures that the report is made of.")
@click.option("--seed", default=0, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace splits that are there, in the rows or beside them.")
def split(rows: Path, val: str, test: str, seed: int, overwrite: bool) -> None:
    """Split rows by picture, every task alike, and say it in a file beside them. The rows stay as they are.

    \b
    Example:
      mvlm data split my.json --val 10% --test 10%
    """
    from mvlm_core.data.files import data_sha256
    from mvlm_core.data.reading import SPLITS, read_rows
    from mvlm_core.data.splits import split_rows, splits_file, write_splits

    shares = {name: _share(name, told) for name, told in (("val", val), ("test", test))}
    if sum(shares.values()) >= 1:
        raise MvlmError(f"--val {val} and --test {test} leave nothing to train on")
    if splits_file(rows).exists() and not overwrite:
        raise MvlmError(f"{splits_file(rows)} is there already: leave it, or replace it with --overwrite")
    read = read_rows(rows, said_beside=False)
    if len(said := {row.split for row in read}) > 1 and not overwrite:
        raise MvlmError(
            f"the rows say their splits themselves ({', '.join(sorted(said))}): --overwrite goes above them"
        )
    splits = split_rows(read, shares["val"], shares["test"], seed)
    file = write_splits(rows, data_sha256(rows), read, splits)
    for name in SPLITS:
        of_split = [row for row in read if splits[row.id] == name]
        click.echo(f"  {name}: {len(of_split):,} rows about {len({row.group for row in of_split}):,} pictures")
    click.echo(f"said in {file}, which is read with {rows}")
    say_next(shlex.join(["mvlm", "data", "check", str(rows)]))


def _share(name: str, told: str) -> float:
    try:
        share = float(told.removesuffix("%")) / (100 if told.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise MvlmError(f"--{name} {told} is no share of the pictures: 10% and 0.1 are")
    return share


@data.command("to-lmms-eval")
@rows_option()
@click.option("--split", default="test", show_default=True, help="Which rows.")
@out_option("tasks")
@OVERWRITE
def to_lmms_eval(rows: Path, split: str, out: Path, overwrite: bool) -> None:
    """Write rows as tasks of lmms-eval: `rows` generates answers, `rows_choice` chooses among given ones.

    \b
    Example:
      mvlm data to-lmms-eval --rows rows --out tasks
    """
    from mvlm_core.evaluation.export_task import write_tasks

    refuse_if_filled(out, overwrite=overwrite)
    with output_folder(out, overwrite=overwrite) as folder:
        counts = write_tasks(rows, folder, split, lies_at=out.absolute())
    click.echo("  ".join(f"{name}: {count} samples" for name, count in counts.items()) + f" in {out}")
    say_next(f"mvlm benchmark --scales 9,36,144 --tasks {','.join(counts)} --include-path {shlex.quote(str(out))}")


@data.command("from-lmms-eval")
@click.argument("task")
@INCLUDE
@click.option(
    "--val-share", type=click.FloatRange(0, 1), default=0.5, show_default=True,
    help="Pictures that the router is fitted on; the report is made of the others.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Only the first samples.")
@out_option("rows")
@OVERWRITE
def from_lmms_eval(
    task: str, include: tuple[Path, ...], val_share: float, limit: int | None, out: Path, overwrite: bool
) -> None:
    """Write a task of lmms-eval as rows, to be labelled. The questions are what lmms-eval would ask.

    \b
    Example:
      mvlm data from-lmms-eval rows --include-path tasks --out benchmark
    """
    from mvlm_core.evaluation.benchmarks import Tasks
    from mvlm_core.evaluation.import_task import write_rows

    refuse_if_filled(out, overwrite=overwrite)
    names = [benchmark.task for benchmark in Tasks.of(include).choose(task)]
    with output_folder(out, overwrite=overwrite) as folder, Bars() as bars:
        counts = write_rows(names[0], folder, include, val_share, limit, bars.reach("reading samples"))
    click.echo("  ".join(f"{split}: {count} rows" for split, count in sorted(counts.items())) + f" in {out}")
    say_next("mvlm label" if out == Path("rows") else f"mvlm label --rows {shlex.quote(str(out))}")
