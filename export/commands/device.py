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
@click.option("--gpu", help="Build ahead of time for an RTX GPU of this kind, as sm89; no GPU is needed for it.")
@click.option("--question-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Longest question.")
@click.option(
    "--layout",
    type=click.Choice(["auto", "own", "shared"]),
    default="auto",
    show_default=True,
    help="Kernels of its own for decoding, or shared with prompts; auto builds both and keeps what memory allows.",
)
@click.option("--workspace-mib", type=click.IntRange(min=1), help="Scratch memory that TensorRT may take.")
@click.option("--unchecked-memory", is_flag=True, help="Build although the forecast says that memory will not do.")
@click.option("--again", is_flag=True, help="Build although nothing has changed.")
@click.option("--print-trtexec", is_flag=True, help="Print the build as commands for trtexec, and build nothing.")
def build(
    bundle: Path, gpu: str | None, question_tokens: int, layout: str, workspace_mib: int | None,
    unchecked_memory: bool, again: bool, print_trtexec: bool,
) -> None:  # fmt: skip
    """Make TensorRT engines of a bundle: on the device that will run them, or for an RTX machine anywhere.

    \b
    Example:
      mvlm build bundle --question-tokens 48
    """
    from tokenizers import Tokenizer

    from export.device.build import Builder, Order, said_of, up_to_date
    from export.device.preflight import require_room
    from export.device.profiles import merged
    from export.runtime.backends.engine_files import engines_folder
    from export.runtime.manifest import read_manifest
    from export.runtime.prompt import Prompt
    from mvlm_core.progress import Bars

    manifest = read_manifest(bundle)
    prompt = Prompt.from_json(manifest.prompt, Tokenizer.from_file(str(manifest.path(manifest.tokenizer))))
    builder = Builder.of(manifest, prompt, Order(question_tokens, layout, workspace_mib), gpu)
    api, folder = builder.api, engines_folder(bundle, builder.fingerprint)
    if print_trtexec:
        click.echo("\n".join(builder.commands()))
        return
    if not again and up_to_date(manifest, builder.fingerprint):
        click.echo(f"{folder}: up to date, nothing was built (--again builds all the same)")
    else:
        wanted = require_room(manifest, api.product, unchecked=unchecked_memory)
        click.echo(f"about {wanted.memory / 2**20:,.0f} MiB of memory will be taken")
        for line in merged(builder.profiles("own")):
            click.echo(line)
        with Bars() as bars:
            facts = builder.build(bars.start("building engines", builder.count()))
        click.echo(said_of(facts, folder))
    where = "" if gpu is None else "on the machine with that GPU: "
    click.echo(f"next: {where}mvlm bench {shlex.quote(str(bundle))}")


@click.command()
@click.argument("bundle", type=_FOLDER, default=Path("bundle"))
@click.option("--provider", help="Left out: the one that the bundle was made for.")
@click.option("--threads", type=click.IntRange(min=1), help="Left out: as many as there are cores, as `mvlm run` does.")
@click.option("--picture", type=_FOLDER, help="Left out: an array of the size that a camera gives.")
@click.option("--question", default="what is in the picture?", show_default=True)
@click.option("--answer-tokens", type=click.IntRange(min=2), default=8, show_default=True, help="In every answer.")
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True, help="Answers at each scale.")
@click.option("--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Rounds before those.")
def bench(
    bundle: Path, provider: str | None, threads: int | None, picture: Path | None, question: str, answer_tokens: int,
    rounds: int, warmup: int,
) -> None:  # fmt: skip
    """Measure what each scale of a bundle costs on this machine; the router then weighs those milliseconds.

    \b
    Example:
      mvlm bench bundle --threads 2
    """
    from export.device.bench import Plan, answers, gpu_memory, measure, open_runtime
    from export.device.bench_report import conclude, said_of_checks, table, to_json
    from export.device.power import PowerMeter
    from export.runtime.artefact import output_folder, write_json
    from export.runtime.backends.onnx import Device
    from export.runtime.machine import device_name, resident_mib
    from export.runtime.manifest import read_manifest
    from export.runtime.routing.costs import bench_folder
    from mvlm_core.progress import Bars

    manifest = read_manifest(bundle)
    device = Device(manifest.provider if provider is None else provider, threads)
    shown = np.random.default_rng(0).integers(0, 256, (*_CAMERA_HW, 3), np.uint8) if picture is None else picture
    plan = Plan(shown, question, answer_tokens, rounds, warmup)
    before = resident_mib()
    runtime = open_runtime(manifest, device)
    memory = {"before_loading": before, "loaded": resident_mib()}
    with Bars() as bars, PowerMeter() as power:
        samples = measure(runtime, plan, power, bars.start("measuring", answers(manifest, plan)))
    measured = conclude(plan, samples)
    facts = to_json(measured, manifest, device, memory | gpu_memory(device.provider), power)
    folder = bench_folder(bundle, device_name(device.provider, threads))
    with output_folder(folder, overwrite=True) as staging:
        write_json(staging / "bench.json", facts)
        drawn = _draw(measured, staging / "bench.png")
    click.echo("\n".join(table(measured)))
    click.echo(said_of_checks(measured.checks))
    if power.absent:
        click.echo(f"power: not measured, {power.absent}")
    click.echo(f"{folder}: {'bench.json and bench.png' if drawn else 'bench.json; ' + _NO_PLOT}")
    click.secho(facts["sentence"], bold=True)
    place = ["--bundle", str(bundle)]
    if picture is None:  # there is none to name
        click.echo(f"next: {shlex.join(['mvlm', 'serve', *place])}")
        return
    scale = [] if manifest.router else ["--scale", str(measured.floor)]
    click.echo(f"next: {shlex.join(['mvlm', 'run', str(picture), question, *place, *scale])}")


_NO_PLOT = 'no plot, matplotlib is not installed: pip install "mvlm[router]"'


def _draw(measured: object, file: Path) -> bool:
    """Draw, or say by False that a device without matplotlib cannot."""
    from export.device.bench_report import Bench, draw

    assert isinstance(measured, Bench)
    try:
        draw(measured, file)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        return False
    return True
