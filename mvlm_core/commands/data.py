"""The verb `data`, with what goes between rows and lmms-eval's tasks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from export.runtime.artefact import output_folder, refuse_if_filled
from export.runtime.errors import CheckFailed, MvlmError, listed
from mvlm_core.progress import Bars, quiet

from .benchmark import INCLUDE
from .train_label import OVERWRITE, data, out_option, rows_option, say_next

if TYPE_CHECKING:
    from mvlm_core.data.row import Row
    from mvlm_core.train.config import TrainConfig

__all__ = ["data"]


@data.command()
@click.argument("rows", type=click.Path(path_type=Path), required=False)
@click.option(
    "--config", type=click.Path(path_type=Path), help="Whose tokens are counted; left out, train.yaml if there is one."
)
@click.option("--show", default=3, show_default=True, help="Rows to print with what is supervised in colour.")
def check(rows: Path | None, config: Path | None, show: int) -> None:
    """Find every fault of a data set before a run is spent on it, and say how long its rows are at each scale.

    \b
    Example:
      mvlm data check rows --config train.yaml
    """
    from mvlm_core.data.check import check_pictures
    from mvlm_core.data.reading import read_rows
    from mvlm_core.data.show import counts

    if config is None and Path("train.yaml").is_file():
        config = Path("train.yaml")
    told = _resolved(config) if config else None
    rows = rows or (told.rows if told else Path("rows"))
    click.echo(f"reading {rows}")
    read = read_rows(rows)
    pictures = len({picture for row in read for picture in row.pictures})
    with Bars() as bars:
        opened = check_pictures(read, bars.start("opening pictures", pictures))
        lines, more = _tokens(read, told, show, bars) if told else ([], [])
    remarks, unscorable = _remarks(rows, read)
    faults = [*opened.faults, *more, *unscorable]
    for line in [*counts(read), *(f"  {remark}" for remark in [*remarks, *opened.warned]), *lines]:
        click.echo(line)
    if told is None:
        click.echo("  how many tokens a row has follows from a configuration: name one with --config")
    if faults:
        raise CheckFailed(f"{rows} has {len(faults)} faults; mend these rows:{listed(faults, most=1000)}")
    click.echo("no fault")
    if told is None:
        click.echo("a configuration comes next: --demo tries the way, --text and --vision name pretrained parts")
        say_next(shlex.join(["mvlm", "init", str(rows), "--demo"]))
        return
    words = ["mvlm", "train", *([] if config in (None, Path("train.yaml")) else [str(config)])]
    if rows.absolute() != told.rows.absolute():
        words.append(f"rows={rows.absolute()}")
    say_next(shlex.join(words))


def _remarks(path: Path, rows: list[Row]) -> tuple[list[str], list[str]]:
    """What is worth a look, and the faults of rows that no answer could be right for."""
    from mvlm_core.data.labelled import labelled
    from mvlm_core.data.remarks import router_pictures, scoring, unread_files, unread_keys
    from mvlm_core.scoring.of_rows import choose_metrics, unscorable

    asked = [question for row in rows if row.split != "train" or row.metric for question in labelled(row)]
    metrics = choose_metrics(asked)
    told = [*unread_keys(path), *unread_files(path, rows), *scoring(asked, metrics), router_pictures(path, rows)]
    return told, unscorable(asked, metrics)


def _resolved(config: Path) -> TrainConfig:
    from mvlm_core.train.config import read_config

    with quiet():
        from mvlm_core.train.build import resolve_config

        return resolve_config(read_config(config))


def _tokens(rows: list[Row], config: TrainConfig, show: int, bars: Bars) -> tuple[list[str], list[str]]:
    """What there is to say of the rows as tokens, and their faults."""
    from mvlm_core.data.check import check_tokens, unlike_rows
    from mvlm_core.data.show import coloured, lengths
    from mvlm_core.train.build import build_processor, positions_of

    processor = build_processor(config, [row for row in rows if row.split == "train"] or rows)
    told = [stage.max_tokens for stage in config.stages if stage.loss == "answers"]
    limits = [most for most in told if most is not None]
    most = min(limits, default=None)
    report = check_tokens(
        rows, processor, config.scales, most, bars.start("counting tokens", len(rows)),
        kept=max(limits) if limits and len(limits) == len(told) else None, positions=positions_of(config.model),
    )  # fmt: skip
    shown = [coloured(row, processor.encode(row.messages()), processor) for row in unlike_rows(rows, show)]
    return [*lengths(report, most), *shown], report.faults


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
    """Write rows as tasks of lmms-eval: `rows` generates answers to single questions, `rows_chat` to those that stand
    in a conversation or are about several pictures, `rows_choice` chooses among given ones.

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
