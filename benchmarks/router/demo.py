"""The long demo, timed stage by stage, and what its report says.

`python -m benchmarks.router.demo [--family query] [--seed 1]`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click

from benchmarks.machine import RESULTS, keep
from export.runtime.families import FAMILIES, Family
from mvlm_core.commands.demo import Demo
from mvlm_core.commands.demo_size import LONG, REHEARSAL

_PLOTS = ("accuracy", "chosen")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--family", type=click.Choice(FAMILIES), default="pool", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--rehearse", is_flag=True, help="A few pictures and steps; its figures are not kept.")
@click.option("--untimed", is_flag=True, help="The machine has other work to do: keep the figures without the times.")
def main(out: Path, family: Family, seed: int, rehearse: bool, untimed: bool) -> None:
    """Run the demo into OUT and keep its figures."""
    Demo(out, family, seed, REHEARSAL if rehearse else LONG).run(overwrite=True)
    if not rehearse:
        keep_figures(out, timed=not untimed)


def keep_figures(out: Path, *, timed: bool) -> None:
    """Take the figures and the plots of a finished demo over into results/."""
    demo, report = (json.loads((out / name).read_text()) for name in ("demo.json", "report/report.json"))
    family, seed = demo["family"], demo["seed"]
    name = f"demo_{family}_seed{seed}"
    command = f"python -m benchmarks.router.demo --family {family} --seed {seed}" + ("" if timed else " --untimed")
    kept = ("verdict", "claims", "scales", "ladder", "steepness", "policies", "oracle", "picture_tasks", "picture_gain",
            "picture_mean", "not_learned", "default_price", "default", "rows", "groups")  # fmt: skip
    figures = {key: report[key] for key in kept}
    for policy in figures["policies"]:
        del policy["curve"]
    file = keep(name, command, seconds=demo["seconds"] if timed else None, **figures)
    for plot in _PLOTS:
        shutil.copy(out / "report" / f"{plot}.png", RESULTS / f"{name}_{plot}.png")
    shutil.copy(out / "rows" / "contact_sheet.png", RESULTS / "scenes.png")
    click.echo(f"{file}")


if __name__ == "__main__":
    main()
