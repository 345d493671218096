"""The verb that makes a bundle. Those that ask one stand in `runtime_commands`."""

from __future__ import annotations

import shlex
from pathlib import Path

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
