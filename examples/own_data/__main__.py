"""Your own data, walked from a file of rows to a bundle that answers: `python -m examples.own_data --out try`.

It makes a small real data set offline, then types what docs/own-data.md types, and says how long each verb took. It
claims no accuracy: it shows that every step takes real pictures, and with `--text FOLDER` real weights.
"""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path

import click

from export.runtime.errors import MvlmError
from mvlm_core.cli import main as mvlm

from .photographs import STAMPS
from .rows import write_rows

# What scores the answers of each task; `label` would guess the rest.
METRICS = ("caption=f1", "reading=anls", "counting=number", "chart=relaxed", "ticked=yes_no")


@dataclass(frozen=True)
class Size:
    """How much of everything: the steps of each stage of training and the pictures of a step, and what `mvlm label` and
    `mvlm export` are told besides."""

    steps: int
    pictures: int
    label: tuple[str, ...] = ()
    export: tuple[str, ...] = ()


# As small as every step can be: minutes with a real language model on a CPU. Of fewer rows to verify with, what four
# bits lose is as often above what they are allowed as below.
QUICK = Size(
    steps=1, pictures=2, label=("--scales", "1,9", "--max-new-tokens", "8", "--no-patches"),
    export=("--verify-rows", "12", "--calibration-rows", "48"),
)  # fmt: skip


@dataclass
class Walk:
    """The verbs, one after another, in the current folder.

    Attributes:
        text: a language model to begin with; None makes a small one from nothing.
        precision: of the bundle, as `mvlm export` is told it.
    """

    text: Path | None
    size: Size
    precision: str = "int4"
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        begin = ("--text", str(self.text)) if self.text else ("--demo",)
        self.verb("data", "split", "my.jsonl", "--val", "25%", "--test", "25%")
        self.verb("init", "my.jsonl", *begin)
        self.verb("data", "check")
        self.verb("train", *self._short())
        metrics = [word for metric in METRICS for word in ("--metric", metric)]
        self.verb("label", *self.size.label, *metrics)
        self.verb("fit-router")
        self.verb("report")
        self.verb("fit-router", "--metric", "agreement", "--out", "agreeing-router")
        self.verb("export", "--precision", self.precision, *self.size.export)
        picture = next(Path("my-pictures").glob("drawn*.png"))
        self.verb("run", str(picture), "How many items does the form say?")

    def _short(self) -> list[str]:
        stages = 2 if self.text else 1
        steps, pictures = self.size.steps, self.size.pictures
        told = {"epochs": "null", "steps": steps, "pictures": pictures, "evaluate_every": steps,
                "evaluate_pictures": min(pictures, 8)}  # fmt: skip
        if pictures < 16:  # what `init` cut for the memory that was free is more than there is
            told["accumulate"] = 1
        short = [f"stages.{n}.{key}={value}" for n in range(stages) for key, value in told.items()]
        return ["train.yaml", *short]

    def verb(self, *arguments: str) -> None:
        click.secho(f"\n$ mvlm {shlex.join(arguments)}", bold=True)
        start = time.perf_counter()
        mvlm.run(list(arguments))
        self.seconds[f"{len(self.seconds) + 1} {arguments[0]}"] = time.perf_counter() - start


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="own_data", show_default=True, help="Folder to make.")
@click.option("--pictures", type=click.IntRange(min=60), default=90, show_default=True)
@click.option("--stamps", type=click.Path(path_type=Path), default=STAMPS, show_default=True,
              help="Where tuxpaint-stamps-default lies.")  # fmt: skip
@click.option("--text", type=click.Path(path_type=Path, exists=True),
              help="A language model as transformers saves it, as benchmarks.real_weights makes one.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), default=30, show_default=True, help="Of each stage of training.")
@click.option("--precision", default="int4", show_default=True, help="Of the bundle.")
@click.option("--quick", is_flag=True, help="As little of everything as will do: minutes with a real language model.")
def main(out: Path, pictures: int, stamps: Path, text: Path | None, steps: int, precision: str, quick: bool) -> None:
    """Make the data set and walk the way."""
    if out.exists():
        raise click.ClickException(f"{out} is there already: name another folder with --out")
    out.mkdir(parents=True)
    begin = text.resolve() if text else None
    os.chdir(out)
    taken = write_rows(Path("my.jsonl"), pictures, stamps)
    if not taken:
        click.secho(f"NO PHOTOGRAPHS: {stamps} is not there (apt-get install tuxpaint-stamps-default);"
                    " letters, forms and charts stand for them", fg="yellow")  # fmt: skip
    click.echo(f"my.jsonl: {pictures} pictures, {taken} of them photographs")
    walk = Walk(begin, QUICK if quick else Size(steps, pictures=16), precision)
    try:
        walk.run()
    except MvlmError as error:
        raise click.ClickException(str(error)) from None
    click.echo("\nseconds: " + ", ".join(f"{verb} {seconds:.0f}" for verb, seconds in walk.seconds.items()))


if __name__ == "__main__":
    main()
