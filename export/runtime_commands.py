"""The verbs that ask a bundle: `run` on a device's own pictures, `serve` over HTTP. They know no torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from export.runtime.errors import MvlmError

_FOLDER = click.Path(path_type=Path)


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
    answer = runtime.ask(
        image, question, "auto" if scale == "auto" else int(scale), price=price, max_new_tokens=max_new_tokens
    )
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
