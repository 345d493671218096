"""The verbs of a device: `build` makes engines of a bundle, `bench` measures what its scales cost."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import numpy as np

_FOLDER = click.Path(path_type=Path)
# What a camera gives; noise, because a picture's content changes no stage but the decoding of its file.
_CAMERA_HW = (480, 640)


@click.command()
@click.argument("bundle", type=_FOLDER, default=Path("bundle"))
@click.option("--provider", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Left out: as many as there are cores, as `mvlm run` does.")
@click.option("--picture", type=_FOLDER, help="Left out: an array of the size that a camera gives.")
@click.option("--question", default="what is in the picture?", show_default=True)
@click.option("--answer-tokens", type=click.IntRange(min=2), default=8, show_default=True, help="In every answer.")
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True, help="Answers at each scale.")
@click.option("--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Rounds before those.")
def bench(
    bundle: Path, provider: str, threads: int | None, picture: Path | None, question: str, answer_tokens: int,
    rounds: int, warmup: int,
) -> None:  # fmt: skip
    """Measure what each scale of a bundle costs on this machine; the router then weighs those milliseconds.

    \b
    Example:
      mvlm bench bundle --threads 2
    """
    from export.bench import Plan, answers, measure, open_runtime, resident_mib
    from export.bench_report import conclude, table, to_json
    from export.power import PowerMeter
    from export.runtime.artefact import output_folder, write_json
    from export.runtime.costs import bench_folder
    from export.runtime.machine import device_name
    from export.runtime.manifest import read_manifest
    from export.runtime.sessions import Device
    from mvlm_core.bars import Bars

    device, manifest = Device(provider, threads), read_manifest(bundle)
    shown = np.random.default_rng(0).integers(0, 256, (*_CAMERA_HW, 3), np.uint8) if picture is None else picture
    plan = Plan(shown, question, answer_tokens, rounds, warmup)
    before = resident_mib()
    runtime = open_runtime(manifest, device)
    memory = {"before_loading": before, "loaded": resident_mib()}
    with Bars() as bars, PowerMeter() as power:
        samples = measure(runtime, plan, power, bars.start("measuring", answers(manifest, plan)))
    measured = conclude(plan, samples)
    facts = to_json(measured, manifest, device, memory, power)
    folder = bench_folder(bundle, device_name(provider, threads))
    with output_folder(folder, overwrite=True) as staging:
        write_json(staging / "bench.json", facts)
        drawn = _draw(measured, staging / "bench.png")
    click.echo("\n".join(table(measured)))
    if power.absent:
        click.echo(f"power: not measured, {power.absent}")
    click.echo(f"{folder}: {'bench.json and bench.png' if drawn else 'bench.json; ' + _NO_PLOT}")
    click.secho(facts["sentence"], bold=True)
    asked = ["picture.jpg" if picture is None else str(picture), question, "--bundle", str(bundle)]
    if manifest.router is None:
        asked += ["--scale", str(measured.floor)]
    click.echo(f"next: {shlex.join(['mvlm', 'run', *asked])}")


_NO_PLOT = 'no plot, matplotlib is not installed: pip install "mvlm[router]"'


def _draw(measured: object, file: Path) -> bool:
    """Draw, or say by False that a device without matplotlib cannot."""
    from export.bench_report import Bench, draw

    assert isinstance(measured, Bench)
    try:
        draw(measured, file)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        return False
    return True
