"""The whole pipeline at toy size: every verb in order, as a person would type it, and what came of it."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from export.runtime.artefact import describe, refuse_if_filled, write_json
from export.runtime.errors import MvlmError
from export.runtime.families import Family

from .demo_size import REHEARSAL, SHEETS, SHORT, Size
from .demo_time import Clock, expected, slowness, spoken

_PARTS = ("rows", "train.yaml", "run", "labels", "router", "report", "bundle")
_SHOWN_KIND = "colour_of"


@dataclass
class Demo:
    """One demo in one folder, of pictures of one view, of either `world`, or, with `large`, of sheets with tiles."""

    out: Path
    family: Family
    seed: int
    size: Size = SHORT
    large: bool = False
    world: str = "plain"
    seconds: dict[str, float] = field(default_factory=dict)
    clock: Clock | None = None  # a rehearsal has none

    def run(self, *, overwrite: bool) -> None:
        """Run every verb into `out` and end with what a person wants to see. Raises `MvlmError` if `out` is filled."""
        self._say_what_is_there(overwrite)
        rows, run, labels, router, report, bundle = (self._path(name) for name in _PARTS if name != "train.yaml")
        again = ("--overwrite",) if overwrite else ()
        if self.size not in (REHEARSAL, SHEETS):  # what sheets take was never measured on a machine of its own
            self.clock = Clock(slowness(), expected(self.size), self.seconds)
            click.echo(f"This takes {spoken(self.clock.left())} on this machine.")
        self._verb(
            "data", "scenes", "--out", rows, "--family", self.family, "--seed", str(self.seed),
            *(("--size", "large") if self.large else ()), *(("--world", self.world) if self.world != "plain" else ()),
            *self.size.drawing(), *again,
        )  # fmt: skip
        self._verb("train", self._path("train.yaml"), *self.size.training(), "--out", run, *again)
        self._verb("label", run, "--rows", rows, "--out", labels, *again)
        self._verb("fit-router", labels, "--out", router, *again)
        self._verb("export", run, "--router", router, "--rows", rows, "--out", bundle, *again)
        self._verb("report", router, "--labels", labels, "--out", report, *again)
        picture, question, answer = self._example(Path(rows))
        self._verb("run", picture, question, "--bundle", bundle)
        click.echo(f"(right is: {answer}; the picture is {picture})")
        facts = describe(
            "demo", family=self.family, seed=self.seed, rehearsal=self.size == REHEARSAL, size=asdict(self.size),
            large=self.large, world=self.world, seconds=self.seconds,
        )  # fmt: skip
        write_json(self.out / "demo.json", facts)
        self._say_where_everything_lies()

    def _path(self, name: str) -> str:
        return (self.out / name).as_posix()

    def _verb(self, *arguments: str) -> None:
        from mvlm_core.cli import main

        if self.clock:
            stage = f"stage {len(self.seconds) + 1} of {len(self.clock.measured)}"
            click.echo(f"\n{stage}, {spoken(self.clock.left())} left", nl=False)
        click.secho(f"\n$ mvlm {shlex.join(arguments)}", bold=True)
        start = time.perf_counter()
        main.run(list(arguments))
        self.seconds[arguments[0]] = time.perf_counter() - start

    def _say_what_is_there(self, overwrite: bool) -> None:
        there = [name for name in _PARTS if (self.out / name).exists()]
        if there and not overwrite:
            raise MvlmError(
                f"{self.out} holds {', '.join(there)} already: --overwrite makes each anew, --out names another folder"
            )
        if not there:
            refuse_if_filled(self.out, overwrite=overwrite)

    def _example(self, rows: Path) -> tuple[str, str, str]:
        """A test question whose picture decides how many tokens it needs; of sheets the first."""
        with (rows / "rows.jsonl").open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                if row["split"] == "test" and (self.large or row["task"] == _SHOWN_KIND):
                    return (rows / row["image"]).as_posix(), row["question"], row["answers"][0]
        raise MvlmError(f"{rows} has no test row of the kind {_SHOWN_KIND}")

    def _say_where_everything_lies(self) -> None:
        lies = {
            "rows": "pictures and questions; contact_sheet.png", "run": "the trained model; metrics.jsonl",
            "labels": "what was right at every scale", "router": "router.onnx and what it bounds",
            "report": "index.html: open it", "bundle": "what a device needs, verified",
        }  # fmt: skip
        click.echo()
        for name, what in lies.items():
            click.echo(f"  {self._path(name):<18} {what}")
        spent = "  ".join(f"{verb} {seconds:.0f} s" for verb, seconds in self.seconds.items())
        click.echo(f"\ntime: {spent}  in all {sum(self.seconds.values()):.0f} s")
        picture = next((self.out / "rows" / "pictures" / "test").rglob("*.png")).as_posix()
        question = self._example(self.out / "rows")[1] if self.large else "what time of day is it?"
        asked = ["mvlm", "run", picture, question, "--bundle", self._path("bundle")]
        click.echo(f"next: {shlex.join(asked)}")
