"""The verbs of this package: `export` makes a bundle, `run` asks it. Only `export` knows torch."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import click

from export.runtime.errors import MvlmError

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
def export(
    run_folder: Path, rows_path: Path, router_folder: Path, no_router: bool, scales: str | None, out: Path,
    overwrite: bool, verify_rows: int,
) -> None:  # fmt: skip
    """Make a bundle of a run: what a device needs to answer, verified against torch on real rows.

    \b
    Example:
      mvlm export run --router router --scales 9,36,144
    """
    from export.bundle import graph_count, reseal, write_bundle
    from export.runtime.artefact import output_folder, refuse_if_filled, write_json
    from export.source import read_source
    from export.verify import sample_rows, verify_bundle
    from mvlm_core.bars import Bars
    from mvlm_core.rows import read_rows
    from mvlm_core.scales import parse_scales

    refuse_if_filled(out, overwrite=overwrite)
    asked = parse_scales(scales) if scales else None
    source = read_source(run_folder, None if no_router else router_folder, asked)
    rows = sample_rows(read_rows(rows_path), verify_rows)
    with output_folder(out, overwrite=overwrite) as folder:
        with Bars() as bars:
            write_bundle(source, folder, bars.start("writing the graphs", graph_count(source)))
            steps = len(rows) * len(source.scales)
            report = verify_bundle(source, folder, rows, bars.start("verifying", steps))
        write_json(folder / "verify.json", report)
        reseal(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
    listed = ", ".join(map(str, source.scales))
    click.echo(f"{out}: scales {listed}, {size / 2**20:.1f} MiB, {len(rows)} rows answered as torch answers them")
    first = rows[0]
    following = ["mvlm", "run", str(first.image), first.question, "--bundle", str(out)]
    if source.router is None:
        following += ["--scale", str(source.scales[-1])]
    click.echo(f"next: {shlex.join(following)}")


@click.command()
@click.argument("image", type=_FOLDER)
@click.argument("question")
@click.option("--bundle", type=_FOLDER, default=Path("bundle"), show_default=True)
@click.option("--scale", default="auto", show_default=True, help="auto, or how many visual tokens.")
@click.option("--price", type=float, help="What a unit of cost is worth in probability. Left out: the router's.")
@click.option("--max-new-tokens", type=int, default=32, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON.")
def run(
    image: Path, question: str, bundle: Path, scale: str, price: float | None, max_new_tokens: int, as_json: bool
) -> None:
    """Ask a bundle one question about one picture.

    \b
    Example:
      mvlm run picture.png "what time of day is it?" --bundle bundle
    """
    from export.runtime import Runtime

    if scale != "auto" and not scale.isdecimal():
        raise MvlmError(f"--scale {scale!r} is neither auto nor a number of visual tokens")
    runtime = Runtime.load(bundle)
    answer = runtime.ask(image, question, "auto" if scale == "auto" else int(scale), price, max_new_tokens)
    if as_json:
        click.echo(json.dumps(asdict(answer), ensure_ascii=False))
        return
    click.echo(answer.text)
    click.secho(answer.reason, err=True, dim=True)
    if answer.probabilities:
        listed = "  ".join(f"{m}: {p:.2f}" for m, p in answer.probabilities.items())
        click.secho(f"P(right) by scale  {listed}", err=True, dim=True)
    stages = "  ".join(f"{stage.removesuffix('_ms')} {ms:.1f}" for stage, ms in answer.timings.items())
    click.secho(f"milliseconds  {stages}", err=True, dim=True)
