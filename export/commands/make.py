"""The verbs that know torch: `export` makes a bundle, `verify` doubts it. Those that ask one: `runtime_commands`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from export.bundle.make import MadeBundle

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=_FOLDER, default=Path("run"))
@click.option("--rows", type=_FOLDER, help="Rows to verify with; left out, what the run was trained from, or"
              " else what the router's labels are of.")  # fmt: skip
@click.option("--router", type=_FOLDER, default=Path("router"), show_default=True)
@click.option("--no-router", is_flag=True, help="Leave the router out; a scale must then be named to ask.")
@click.option("--scales", help="Scales that the bundle holds, as in 9,36,144 or 4,16@4. Left out: the router's.")
@click.option("--out", type=_FOLDER, default=Path("bundle"), show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace what stands at --out.")
@click.option("--verify-rows", type=click.IntRange(min=1), default=24, show_default=True, help="At each scale.")
@click.option(
    "--target",
    default="ort-cpu",
    show_default=True,
    help="ort-cpu, ort-cuda, jetpack-6.2, jetpack-7.2, rtx, or onnx.",
)
@click.option(
    "--precision",
    help="Of each part: tower=int8,connector=float32,prefill=int8,decode=int4. A word alone "
    "is for prefill and decode; int4-fast is smaller and faster than int4, and loses more. auto takes the smallest and "
    "fastest that passes verification. Left out: the target's own.",
)
@click.option(
    "--calibration-rows",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="Rows that 4 and 8 bits are fitted to, none of them verified with. 0 rounds each weight by itself.",
)
@click.option(
    "--max-loss",
    type=click.FloatRange(min=0),
    help="Nats a token that the chances of reference answers may move by. Left out: the precision's own.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    help="Positions a conversation may hold. Left out: all that model and target allow.",
)
def export(
    run: Path, rows: Path | None, out: Path, overwrite: bool, router: Path, no_router: bool, scales: str | None,
    **others: Any,
) -> None:  # fmt: skip
    """Make a bundle of a run: what a device needs to answer, verified against torch on real rows.

    \b
    Example:
      mvlm export run --router router --scales 9,36,144 --target ort-cpu
    """
    from export.bundle.make import Wanted, make_bundle
    from export.bundle.source import rows_labelled
    from mvlm_core.data.of_run import rows_for, run_rows
    from mvlm_core.modeling.scales import read_words
    from mvlm_core.progress import Bars

    asked = read_words(scales) if scales else None
    chooser = None if no_router else router
    rows = rows or run_rows(run) or rows_labelled(chooser) or rows_for(run, None)
    wanted = Wanted(run, rows, chooser, asked, **others)
    with Bars() as bars:
        made = make_bundle(wanted, out, overwrite=overwrite, start=bars.start)
    listed = ", ".join(map(str, made.source.scales))
    click.echo(f"{out}: {wanted.target}, scales {listed}, {made.size_bytes / 2**20:.1f} MiB, {len(made.rows)} rows")
    for refused in made.refused:
        click.echo(f"refused: {refused}")
    click.echo(f"precision: {', '.join(f'{part} {chosen}' for part, chosen in made.plan.precision.items())}")
    _say_verified(made.report)
    _say_prefill(made.plan.apart, out)
    click.echo(f"next: {shlex.join(['mvlm', *_following(made, out)])}")


def _following(made: MadeBundle, bundle: Path) -> list[str]:
    """The words of the command behind an export: ask the bundle, where a row's picture is a file, or else serve it."""
    from mvlm_core.data.pictures import PictureFile

    first = made.rows[0]
    if made.plan.target.engine == "tensorrt":
        return ["build", str(bundle)]
    if not isinstance(first.image, PictureFile):
        return ["serve", "--bundle", str(bundle)]
    scale = [] if made.source.router else ["--scale", str(made.source.scales[-1])]
    return ["run", str(first.image), first.question, "--bundle", str(bundle), *scale]


@click.command()
@click.argument("bundle", type=_FOLDER, default=Path("bundle"))
@click.option("--run", "run_folder", type=_FOLDER, help="What it is made of; left out, as its verify.json says.")
@click.option("--rows", "rows_path", type=_FOLDER, help="Left out, those that it was verified with.")
@click.option("--verify-rows", type=click.IntRange(min=1), default=24, show_default=True, help="At each scale.")
@click.option("--max-loss", type=click.FloatRange(min=0), help="As of `export`; left out, what was allowed there.")
def verify(
    bundle: Path, run_folder: Path | None, rows_path: Path | None, verify_rows: int, max_loss: float | None
) -> None:  # fmt: skip
    """Hold a bundle against its run, as `export` did; one that fails gets a name that says so.

    \b
    Example:
      mvlm verify bundle --verify-rows 200
    """
    from dataclasses import replace

    from export.bundle.files import reseal
    from export.bundle.made_from import MadeFrom
    from export.bundle.refused import Refused, keep_refused
    from export.bundle.source import read_source
    from export.bundle.verify import sample_rows, verify_bundle
    from export.runtime.artefact import write_json
    from export.runtime.errors import CheckFailed
    from export.runtime.manifest import read_manifest, read_verification
    from mvlm_core.data.of_run import rows_for
    from mvlm_core.data.reading import read_rows
    from mvlm_core.progress import Bars

    manifest = read_manifest(bundle)
    scales, before = manifest.scales, read_verification(manifest) or {}
    allowed = before.get("max_loss") if max_loss is None else max_loss
    known = MadeFrom.of(bundle, before)
    run = run_folder or known.run or Path("run")
    rows_path = rows_path or known.rows or rows_for(run, None)
    made_from = replace(known, run=run, rows=rows_path)
    source = replace(read_source(run, None, scales), metrics_said=known.metrics_said)
    rows = sample_rows(read_rows(rows_path), verify_rows)
    try:
        with Bars() as bars:
            report = verify_bundle(source, bundle, rows, bars.start("verifying", len(rows) * len(scales)), allowed)
    except Refused as error:
        error.report |= made_from.to_json(bundle)
        raise CheckFailed(f"{error}; it stands in {keep_refused(bundle, bundle, error)}; another --precision may"
                          " pass, or more allowed with --max-loss") from None  # fmt: skip
    kept = {"calibration": before["calibration"]} if "calibration" in before else {}
    write_json(bundle / "verify.json", report | kept | made_from.to_json(bundle))
    reseal(bundle)
    _say_verified(report)
    click.echo(f"next: {shlex.join(['mvlm', 'bench', str(bundle)])}")


def _say_verified(report: dict[str, Any]) -> None:
    """A line for each scale: how many answers are torch's, and what the others cost."""
    click.echo(f"accuracy is by {', '.join(report['metrics'])}")
    for scale, facts in report["scales"].items():
        lost, accuracy = facts["points_lost"], facts["accuracy"]
        click.echo(
            f"{scale:>5} tokens: {facts['same_answers']} of {facts['answers']} answers are torch's; accuracy"
            f" {100 * accuracy['bundle']:.1f} %, torch {100 * accuracy['torch']:.1f} %:"
            f" {lost['points']:.1f} points lost [{lost['low']:.1f}, {lost['high']:.1f}]"
        )
        kl, nats, top1 = (facts["fidelity"][name]["mean"] for name in ("kl", "nats", "top1"))
        click.echo(
            f"{'':>5}         reference answers: KL {kl:.3g} nats a token (allowed {report['max_loss']:g}),"
            f" first choice kept {100 * top1:.1f} %, {nats:+.3f} nats"
        )
    router = report["router"]
    if router["asked"]:
        click.echo(f"the router chooses the same for {router['same']} of {router['asked']} questions")


def _say_prefill(apart: bool, bundle: Path) -> None:
    """What a graph of its own for prefill costs: the weights of both are in memory at once."""
    if apart:
        from export.bundle.files import weight_bytes

        prefill, decode = (weight_bytes(bundle / file) / 2**20 for file in ("prefill.onnx", "decoder.onnx"))
        click.echo(
            f"prefill has a graph of its own: {prefill:.1f} MiB of weights in memory beside the {decode:.1f} MiB of"
            " decode, over one cache"
        )
