"""The verbs of this package. Each reads paths, writes one path, and ends by naming the next command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from export.runtime.artefact import output_folder, refuse_if_filled
from export.runtime.errors import MvlmError
from export.runtime.families import FAMILIES, Family
from mvlm_core.progress import Bars, quiet

OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what --out holds.")
SMALL_WORLDS = ("plain", "varied")
_FLAT_LADDER = 0.05
_NOTHING_RIGHT = 0.02
_WORLD = click.option(
    "--world", type=click.Choice(SMALL_WORLDS), default="plain", show_default=True,
    help="Of pictures of one view: things of a few sizes, or of every size, and some for the finest scale alone.",
)  # fmt: skip
Size = Literal["small", "large"]
SIZES: tuple[Size, ...] = ("small", "large")
Verb = TypeVar("Verb", bound=Callable[..., Any])


def out_option(default: str) -> Callable[[Verb], Verb]:
    return click.option(
        "--out", type=click.Path(path_type=Path), default=default, show_default=True, help="Folder to write."
    )


def rows_option() -> Callable[[Verb], Verb]:
    return click.option(
        "--rows", type=click.Path(path_type=Path), default="rows", show_default=True, help="Rows folder or data file."
    )


def _refuse_world(world: str, other: bool) -> None:
    """Raise `MvlmError` for a world of pictures of one view where clips or sheets are asked for."""
    if world != "plain" and other:
        raise MvlmError(f"--world {world} is of pictures of one view: leave --clips and --size large away")


def say_next(command: str) -> None:
    click.echo(f"next: {command}")


@click.group()
def data() -> None:
    """Draw a benchmark, or check a data set.

    \b
    Example:
      mvlm data scenes --help
    """


@data.command()
@out_option("rows")
@click.option(
    "--train", type=int, help="Pictures that the model is trained on; left out, as many as its recipe is for."
)
@click.option("--val", type=int, help="Pictures that the router is fitted on; left out, as many as its recipe is for.")
@click.option("--test", type=int, help="Pictures that the report is made of; left out, as many as its recipe is for.")
@click.option("--family", type=click.Choice(FAMILIES), default="pool", show_default=True, help="For train.yaml.")
@click.option(
    "--size", type=click.Choice(SIZES), default="small", show_default=True,
    help="One view a picture, or sheets of up to sixteen tiles.",
)  # fmt: skip
@_WORLD
@click.option("--clips", is_flag=True, help="Short clips, whose questions need one frame, a few or all.")
@click.option("--seed", default=0, show_default=True)
@OVERWRITE
def scenes(
    out: Path, train: int | None, val: int | None, test: int | None, family: Family, size: Size, world: str,
    clips: bool, seed: int, overwrite: bool,
) -> None:  # fmt: skip
    """Draw the benchmark: pictures whose questions need different amounts of sight. Writes a train.yaml beside it.

    \b
    Example:
      mvlm data scenes --train 40 --val 10 --test 10
    """
    from mvlm_core.scenes.drawn import WorldName
    from mvlm_core.scenes.rows_folder import WORLDS, SceneCounts, write_scenes
    from mvlm_core.train.config import scenes_config, write_config

    if clips and size != "small":
        raise MvlmError("--clips and --size large exclude each other: name one of them")
    _refuse_world(world, clips or size != "small")
    drawn: WorldName = "clips" if clips else "varied" if world == "varied" else size
    asked, usual = (train, val, test), WORLDS[drawn].pictures
    counts = SceneCounts(*(n if said is None else said for said, n in zip(asked, usual, strict=True)))
    if min(counts.train, counts.val, counts.test) < 1:
        raise MvlmError("each split needs at least one picture")
    config_file = out.absolute().parent / "train.yaml"
    if config_file.exists() and not overwrite:
        raise MvlmError(f"{config_file} is there already: move it away, or replace it with --overwrite")
    with output_folder(out, overwrite=overwrite) as folder, Bars() as bars:
        bar = bars.start("drawing pictures", counts.train + counts.val + counts.test)
        kinds = write_scenes(folder, counts, seed, bar, drawn)
    write_config(config_file, scenes_config(family, rows=out, seed=seed, world=drawn))
    click.echo(f"{sum(kinds.values())} rows of {len(kinds)} kinds in {out}; look at {out / 'contact_sheet.png'}")
    words = [] if out == Path("rows") else [str(out)]
    words += [] if config_file == Path("train.yaml").absolute() else ["--config", str(config_file)]
    say_next(shlex.join(["mvlm", "data", "check", *words]))


def _nothing(_: str) -> None:
    """What processes besides the first one say."""


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default="train.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@out_option("run")
@click.option("--resume", is_flag=True, help="Go on with an unfinished run at its last checkpoint.")
@OVERWRITE
def train(config: Path, overrides: tuple[str, ...], out: Path, resume: bool, overwrite: bool) -> None:
    """Train a nested-token model as a YAML configuration says; any key also as KEY=VALUE.

    \b
    Example:
      mvlm train train.yaml seed=1 --out run
    """
    if "=" in config.name and not config.exists():  # `mvlm train seed=1` means train.yaml with an override
        config, overrides = Path("train.yaml"), (str(config), *overrides)
    from mvlm_core.data.picture_warnings import picture_warnings
    from mvlm_core.train.config import read_config

    with quiet():
        from mvlm_core.train.build import resolve_config, weights_from
        from mvlm_core.train.recipe import process_state
        from mvlm_core.train.recipe import train as run_recipe

        resolved = resolve_config(read_config(config, overrides))
        sources = weights_from(resolved)
    say = click.echo if process_state().is_main_process else _nothing
    for source in sources:
        say(source)
    with picture_warnings(say), Bars() as bars, quiet():
        run_recipe(
            resolved, out, resume=resume, overwrite=overwrite, say=bars.say if say is click.echo else say,
            progress=lambda stage, steps: bars.start_told(f"training, stage {stage}", steps),
        )  # fmt: skip
    if not process_state().is_main_process:
        return
    click.echo(f"a trained model in {out}; each step's loss and scale in {out / 'metrics.jsonl'}")
    if resolved.model.chat_template == "plain":
        click.echo("captions alone were learned, and nothing can be asked yet: a second stage starts from this run")
        say_next(shlex.join(["mvlm", "train", "STAGE2.yaml", f"model.start={out.absolute()}"]))
        return
    say_next(shlex.join(["mvlm", "label", *([] if out == Path("run") else [str(out)])]))


@click.command()
@click.argument("run", type=click.Path(path_type=Path), default="run")
@click.option(
    "--rows", type=click.Path(path_type=Path), help="Rows folder or data file; left out, what the run was trained from."
)
@click.option("--scales", default=None, help="As in 1,4,9,36,144; left out, those of the run's train.yaml.")
@click.option("--splits", default="val,test", show_default=True, help="What the model was not trained on.")
@click.option("--training-rows", is_flag=True, help="Label rows that the run was trained on all the same.")
@click.option(
    "--samples", type=click.IntRange(min=1), default=1, show_default=True,
    help="Runs beyond the first draw their answers: they tell what a row needs from luck.",
)  # fmt: skip
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="[TASK=]METRIC",
    help="What scores rows that name no metric, as exact, vqa, choice or agreement (docs/scores.md); repeatable.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=None,
    help="Tokens of an answer at most; left out, half as many again as the longest right one.",
)
@click.option(
    "--max-rows", type=click.IntRange(min=1), default=None,
    help="Label a sample of so many rows, each task by its share, and say what interval that buys.",
)  # fmt: skip
@click.option(
    "--patches/--no-patches", default=True, show_default=True,
    help="Keep each picture's patches, for a router that reads them.",
)  # fmt: skip
@click.option(
    "--beside", metavar="SCALE", default=None,
    help="Of rows with several pictures: how all but the one in question are shown; left out, the run's default.",
)  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="As torch names it: cpu, cuda, cuda:1.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@out_option("labels")
@OVERWRITE
def label(
    run: Path, rows: Path | None, scales: str | None, splits: str, training_rows: bool, samples: int,
    metrics: tuple[str, ...], max_new_tokens: int | None, max_rows: int | None, patches: bool, beside: str | None,
    device: str,
    precision: Literal["float32", "bfloat16"], out: Path, overwrite: bool,
) -> None:  # fmt: skip
    """Answer every row at every scale and store what was right. Stopped and started again, it goes on.

    torchrun shares the work out among processes: torchrun --nproc-per-node 2 --no-python mvlm label run.

    \b
    Example:
      mvlm label run --rows rows --scales 1,4,9,36,144
    """
    from export.runtime.views.scale import Scale
    from mvlm_core.checkpoints.run_folder import weight_files
    from mvlm_core.data.of_run import rows_for
    from mvlm_core.data.picture_warnings import picture_warnings
    from mvlm_core.data.reading import SPLITS
    from mvlm_core.label.patches import MOST_BYTES
    from mvlm_core.label.put_together import ladder
    from mvlm_core.label.shares import own_device, own_share
    from mvlm_core.label.sweep import Sweep
    from mvlm_core.label.sweep import label as sweep_rows
    from mvlm_core.modeling.scales import read_words
    from mvlm_core.scoring.of_rows import scored_by
    from mvlm_core.train.config import run_scales

    wanted = tuple(splits.split(","))
    unknown = [split for split in wanted if split not in SPLITS]
    if unknown:
        raise MvlmError(f"no split is called {', '.join(unknown)}: choose among {', '.join(SPLITS)}")
    share = own_share()
    say = click.echo if share.first else _nothing
    if share.first:
        refuse_if_filled(out, overwrite=overwrite)
    rows = rows_for(run, rows)
    if not training_rows:
        _require_unlearned(run, rows, wanted)
    asked = read_words(scales) if scales else run_scales(run)
    sweep = Sweep(
        run, rows, asked, wanted, samples, max_new_tokens, metrics=metrics, device=own_device(device),
        precision=precision, patches=patches, max_rows=max_rows,
        beside=Scale.parse(beside).word if beside else None,
    )  # fmt: skip
    weight_files(run)  # what is no run is told before anything else
    if patches:
        say(f"patches of each picture are kept, in at most {MOST_BYTES:,} bytes (--no-patches leaves them out)")
    with picture_warnings(click.echo), Bars() as bars:
        progress = bars.reach("labelling") if share.first else lambda done, whole: None
        facts = sweep_rows(sweep, out, overwrite=overwrite, progress=progress, share=share, say=say)
    if not share.first:
        return
    steps = ladder(out)
    click.echo(f"{facts['counts']['rows']} rows at {len(steps)} scales in {out}; mean score at each:")
    click.echo("  " + "   ".join(f"{scale}: {right:.3f}" for scale, right in steps.items()))
    click.echo(scored_by(facts))
    if max(steps.values()) < _NOTHING_RIGHT:
        click.echo(
            "HARDLY AN ANSWER IS RIGHT at any scale. Look at `prediction` and `answer` in labels.parquet: is it the"
            " model, or the metric? Longer answers want f1 or contains (docs/scores.md)."
        )
    elif max(steps.values()) - min(steps.values()) < _FLAT_LADDER:
        click.echo(
            "The ladder looks flat: more visual tokens hardly help this model on these rows. `mvlm report` says how"
            " sure that is."
        )
    say_next(shlex.join(["mvlm", "fit-router", *([] if out == Path("labels") else [str(out)])]))


def _require_unlearned(run: Path, rows: Path, splits: Sequence[str]) -> None:
    """Raise `MvlmError` for rows that a run was trained on, or may have been."""
    from mvlm_core.checkpoints.run_folder import read_run_facts
    from mvlm_core.data.of_run import run_rows
    from mvlm_core.data.reading import rows_sha256

    learned = run_rows(run)
    if learned is None or rows.resolve() != learned.resolve():
        return
    if "train" in splits:
        raise MvlmError(
            f"{run} was trained on the rows of the split train: it knows their answers, so labels of them would say"
            " that few tokens are enough. Label val and test (`mvlm data split` makes them), or say --training-rows"
        )
    began = read_run_facts(run).get("rows_sha256")
    if began not in (None, rows_sha256(rows)):
        raise MvlmError(
            f"{rows} or its splits have changed since {run} was trained on them, so it may know the answers of rows"
            " that are of val and test now: train again, or say --training-rows"
        )


@click.command()
@out_option("demo")
@click.option(
    "--family", type=click.Choice(FAMILIES), default="pool", show_default=True, help="M3, M3 nested by prefix, or MQT."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--rehearse", is_flag=True, help="A few pictures and steps: shows the way, not the result.")
@click.option("--long", "at_length", is_flag=True, help="Learn longer, and label more pictures for the router.")
@click.option(
    "--size", type=click.Choice(SIZES), default="small", show_default=True,
    help="One view a picture, or sheets of up to sixteen tiles.",
)  # fmt: skip
@_WORLD
@OVERWRITE
def demo(
    out: Path, family: Family, seed: int, rehearse: bool, at_length: bool, size: Size, world: str, overwrite: bool
) -> None:  # fmt: skip
    """The whole way in one command: draw, train, label, fit a router, report, export, and ask.

    \b
    Example:
      mvlm demo --rehearse --out demo
    """
    from .demo import Demo
    from .demo_size import LONG, REHEARSAL, SHEETS, SHORT

    large = size == "large"
    if at_length and (rehearse or large):
        other = "--rehearse" if rehearse else "--size large"
        raise MvlmError(f"{other} and --long exclude each other: name one of them")
    _refuse_world(world, large)
    usual = SHEETS if large else LONG if at_length else SHORT
    Demo(out, family, seed, REHEARSAL if rehearse else usual, large, world).run(overwrite=overwrite)
