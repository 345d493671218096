"""The verbs that know torch: `export` makes a bundle, `verify` doubts it. Those that ask one: `runtime_commands`."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import click

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("run_folder", metavar="[RUN]", type=_FOLDER, default=Path("run"))
@click.option("--rows", "rows_path", type=_FOLDER, default=Path("rows"), show_default=True, help="Rows to verify with.")
@click.option("--router", "router_folder", type=_FOLDER, default=Path("router"), show_default=True)
@click.option("--no-router", is_flag=True, help="Leave the router out; a scale must then be named to ask.")
@click.option("--scales", help="Which scales the bundle holds, as in 9,36,144. Left out: the router's.")
@click.option("--out", type=_FOLDER, default=Path("bundle"), show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace what stands at --out.")
@click.option("--verify-rows", type=click.IntRange(min=1), default=24, show_default=True, help="At each scale.")
@click.option(
    "--target",
    "target_name",
    default="ort-cpu",
    show_default=True,
    help="ort-cpu, ort-cuda, jetpack-6.2, jetpack-7.2, rtx, or onnx.",
)
@click.option(
    "--precision",
    help="Of each part: tower=int8,connector=float32,prefill=int8,decode=int4. A word alone "
    "is for prefill and decode. Left out: the target's own.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    help="Positions a conversation may hold. Left out: all that model and target allow.",
)
def export(
    run_folder: Path, rows_path: Path, router_folder: Path, no_router: bool, scales: str | None, out: Path,
    overwrite: bool, verify_rows: int, target_name: str, precision: str | None, max_length: int | None,
) -> None:  # fmt: skip
    """Make a bundle of a run: what a device needs to answer, verified against torch on real rows.

    \b
    Example:
      mvlm export run --router router --scales 9,36,144 --target ort-cpu --precision prefill=int8,decode=int4
    """
    from export.bundle import graph_count, require_room, reseal, write_bundle
    from export.runtime.artefact import output_folder, refuse_if_filled, write_json
    from export.source import read_source
    from export.targets import plan
    from export.verify import sample_rows, verify_bundle
    from mvlm_core.bars import Bars
    from mvlm_core.rows import read_rows
    from mvlm_core.scales import parse_scales

    refuse_if_filled(out, overwrite=overwrite)
    asked = parse_scales(scales) if scales else None
    plan(target_name, precision, None, 1)  # what cannot be had is said before anything is loaded
    source = read_source(run_folder, None if no_router else router_folder, asked)
    asked_for = plan(target_name, precision, max_length, source.positions)
    rows = sample_rows(read_rows(rows_path), verify_rows)
    require_room(source, asked_for, out)
    with output_folder(out, overwrite=overwrite) as folder:
        with Bars() as bars:
            write_bundle(source, asked_for, folder, bars.start("writing the graphs", graph_count(source, asked_for)))
            steps = len(rows) * len(source.scales)
            report = verify_bundle(source, folder, rows, bars.start("verifying", steps))
        write_json(folder / "verify.json", report)
        reseal(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
    listed = ", ".join(map(str, source.scales))
    click.echo(f"{out}: {target_name}, scales {listed}, {size / 2**20:.1f} MiB, {len(rows)} rows")
    _say_verified(report)
    _say_prefill(asked_for.apart, out)
    first = rows[0]
    if asked_for.target.engine == "tensorrt":
        click.echo(f"next: {shlex.join(['mvlm', 'build', str(out)])}")
        return
    following = ["mvlm", "run", str(first.image), first.question, "--bundle", str(out)]
    if source.router is None:
        following += ["--scale", str(source.scales[-1])]
    click.echo(f"next: {shlex.join(following)}")


@click.command()
@click.argument("bundle", type=_FOLDER, default=Path("bundle"))
@click.option("--run", "run_folder", type=_FOLDER, default=Path("run"), show_default=True, help="What it is made of.")
@click.option("--rows", "rows_path", type=_FOLDER, default=Path("rows"), show_default=True)
@click.option("--verify-rows", type=click.IntRange(min=1), default=24, show_default=True, help="At each scale.")
def verify(bundle: Path, run_folder: Path, rows_path: Path, verify_rows: int) -> None:
    """Hold a bundle against its run, as `export` did; one that fails is removed.

    \b
    Example:
      mvlm verify bundle --run run --rows rows --verify-rows 200
    """
    from export.bundle import reseal
    from export.runtime.artefact import write_json
    from export.runtime.errors import CheckFailed
    from export.runtime.manifest import read_manifest
    from export.source import read_source
    from export.verify import sample_rows, verify_bundle
    from mvlm_core.bars import Bars
    from mvlm_core.rows import read_rows

    scales = read_manifest(bundle).scales
    source = read_source(run_folder, None, scales)
    rows = sample_rows(read_rows(rows_path), verify_rows)
    try:
        with Bars() as bars:
            report = verify_bundle(source, bundle, rows, bars.start("verifying", len(rows) * len(scales)))
    except CheckFailed as error:
        shutil.rmtree(bundle)
        raise CheckFailed(f"{error}; {bundle} was removed") from None
    write_json(bundle / "verify.json", report)
    reseal(bundle)
    _say_verified(report)
    click.echo(f"next: {shlex.join(['mvlm', 'bench', str(bundle)])}")


def _say_verified(report: dict[str, Any]) -> None:
    """A line for each scale: how many answers are torch's, and what the others cost."""
    for scale, facts in report["scales"].items():
        lost, accuracy = facts["points_lost"], facts["accuracy"]
        click.echo(
            f"{scale:>5} tokens: {facts['same_answers']} of {facts['answers']} answers are torch's; accuracy"
            f" {100 * accuracy['bundle']:.1f} %, torch {100 * accuracy['torch']:.1f} %:"
            f" {lost['points']:.1f} points lost [{lost['low']:.1f}, {lost['high']:.1f}]"
        )
    router = report["router"]
    if router["asked"]:
        click.echo(f"the router chooses the same for {router['same']} of {router['asked']} questions")


def _say_prefill(apart: bool, bundle: Path) -> None:
    """What a graph of its own for prefill costs: the weights of both are in memory at once."""
    if apart:
        from export.bundle import weight_bytes

        prefill, decode = (weight_bytes(bundle / file) / 2**20 for file in ("prefill.onnx", "decoder.onnx"))
        click.echo(
            f"prefill has a graph of its own: {prefill:.0f} MiB of weights in memory beside the {decode:.0f} MiB of"
            " decode, over one cache"
        )
