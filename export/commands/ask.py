"""The verbs that ask a bundle: `run` on a device's own pictures, `serve` over HTTP. They know no torch."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.runtime.errors import CheckFailed, MvlmError
from export.runtime.views.scale import Scale, is_word

from .opened import opened

if TYPE_CHECKING:
    from export.runtime import Answer, View

_FOLDER = click.Path(path_type=Path)
_ASKED = (
    click.option("--scale", default="auto", show_default=True, help="auto, a number of visual tokens, or as 16@4."),
    click.option("--price", type=float, help="What a unit of cost is worth in probability. Left out: the router's."),
    click.option("--budget", type=float, help="The mean cost of a question instead of a price."),
    click.option("--within", type=float, help="A loss that the router bounds instead of a price, as in 0.01."),
    click.option("--cap", type=float, help="The most that one question may cost."),
    click.option("--least-probability", type=float, help="Leave out scales that are less likely right."),
    click.option("--deadline-ms", type=float, help="When the answer must stand."),
    click.option("--choices", help="The answers to choose from, as in yes,no."),
    click.option("--max-new-tokens", type=int, default=32, show_default=True),
)


def _asked(command: Any) -> Any:
    for option in reversed(_ASKED):
        command = option(command)
    return command


@click.command()
@click.argument("source")
@click.argument("question")
@click.option("--bundle", type=_FOLDER, default=Path("bundle"), show_default=True)
@click.option("--provider", default="cpu", show_default=True)
@click.option("--threads", type=int, help="Left out: as many as cores.")
@_asked
@click.option("--every", type=float, default=1.0, show_default=True, help="Seconds between the frames of a video.")
@click.option("--frames", "most", type=click.IntRange(min=1), help="Stop after as many pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON, a line for each picture.")
@click.option("--explain", is_flag=True, help="Show what the router saw, and what each scale would have been worth.")
def run(
    source: str, question: str, bundle: Path, provider: str, threads: int | None, every: float, most: int | None,
    as_json: bool, explain: bool, **asked: Any,
) -> None:  # fmt: skip
    """Ask a bundle a question about SOURCE: a picture, a folder of them, a video, or the number of a camera.

    \b
    Example:
      mvlm run picture.png "what time of day is it?" --bundle bundle
    """
    from export.runtime.frames import frames
    from export.runtime.request import request_of

    scale, options = _request(asked)
    runtime = opened(bundle, provider, threads, routed=scale == "auto")
    runtime.require_answerable(request_of(question, scale, options))
    failed = count = 0
    for frame in itertools.islice(frames(source, every), most):
        count += 1
        try:
            view = runtime.look(frame.picture, frame.order)
            answer = view.ask(question, scale, **options)
        except MvlmError as error:
            if frame.name == Path(source).name:
                raise
            failed += 1
            click.echo(f"{frame.name}: {error}", err=True)
            continue
        if as_json:
            click.echo(json.dumps({"picture": frame.name, **asdict(answer)}, ensure_ascii=False))
        else:
            alone = frame.name == Path(source).name
            click.echo(answer.text if alone else f"{frame.name}: {answer.text}")
            _show(answer)
            click.secho(runtime.verified(answer.scale), err=True, dim=True)
        if explain:
            click.echo(_explained(view, question, answer, options), err=True)
    if failed:
        raise CheckFailed(f"{failed} of {count} pictures could not be answered: see the lines above")
    if not as_json:
        click.secho(f"next: {shlex.join(['mvlm', 'serve', '--bundle', str(bundle)])}", err=True, dim=True)


@click.command()
@click.option("--bundle", type=_FOLDER, default=Path("bundle"), show_default=True)
@click.option("--provider", default="cpu", show_default=True)
@click.option("--threads", type=int, help="Left out: as many as cores.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Another than this machine needs a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--token", envvar="MVLM_TOKEN", help="What callers must bring; better given in MVLM_TOKEN.")
@click.option("--queue", type=click.IntRange(min=1), default=16, show_default=True, help="Questions that may wait.")
@click.option("--log", type=_FOLDER, help="A file that gets a JSON line for each request, without its content.")
@click.option("--allow-origin", "origins", multiple=True, help="A site whose pages may ask from a browser; repeatable.")
@click.option("--model-name", help="One more name for the model: what the router chooses, or the finest scale.")
def serve(
    bundle: Path, provider: str, threads: int | None, host: str, port: int, token: str | None, queue: int,
    log: Path | None, origins: tuple[str, ...], model_name: str | None,
) -> None:  # fmt: skip
    """Serve a bundle over HTTP as OpenAI's API has it, with a page to try it on.

    \b
    Example:
      mvlm serve --bundle bundle --port 8080
    """
    from export.runtime.serve.server import Limits, Settings, serve_forever

    for origin in origins:
        if not re.fullmatch(r"https?://[^/\s*]+", origin):
            raise MvlmError(f"--allow-origin {origin!r} is no site: write https://example.org, without a path")
    settings = Settings(host, port, token, Limits(queue=queue), log, model_name, origins)
    runtime = opened(bundle, provider, threads, routed=True)
    serve_forever(runtime, settings, ready=lambda url: click.echo(f"open {url}"))


def _request(asked: dict[str, Any]) -> tuple[Any, Any]:
    """Scale and options as the runtime takes them."""
    scale = asked.pop("scale")
    if scale != "auto" and not is_word(scale):
        raise MvlmError(
            f"--scale {scale!r} is neither auto nor a number of visual tokens, with tiles 16@4", code="bad-scale"
        )
    options = {name: value for name, value in asked.items() if value is not None}
    if "choices" in options:
        options["choices"] = [choice.strip() for choice in options["choices"].split(",")]
    return scale if scale == "auto" else Scale.parse(scale).word, options


def _show(answer: Answer) -> None:
    """What stands beside an answer, for people."""
    click.secho(answer.reason, err=True, dim=True)
    for what, by in (("P(right) by scale", answer.probabilities), ("share by choice", answer.choices)):
        if by:
            click.secho(f"{what}  " + "  ".join(f"{key}: {p:.2f}" for key, p in by.items()), err=True, dim=True)
    stages = "  ".join(f"{stage.removesuffix('_ms')} {ms:.1f}" for stage, ms in answer.timings.items())
    click.secho(f"milliseconds  {stages}", err=True, dim=True)


def _explained(view: View, question: str, answer: Answer, options: dict[str, Any]) -> str:
    """The router's decision as a table: what each scale costs, how likely it is right, and what that is worth."""
    from export.runtime.request import request_of
    from export.runtime.routing.by_picture import in_tokens

    runtime = view.runtime
    if runtime.router is None:
        return "this bundle holds no router: nothing was chosen"
    features = runtime.features(view, request_of(question, "auto", options))
    choice = view.choose(question, **options)
    router = runtime.router
    unit, dearest = router.facts.cost_unit, max(router.facts.costs)
    lines = [f"{'tokens':>8} {'P(right)':>9} {f'cost, {unit}':>13} {'worth':>7}"]
    here = in_tokens(router, view, anew=True)  # what this picture cost before anything of it was there
    for m, cost in zip(router.offered, (router.costs if here is None else here).tolist(), strict=True):
        worth = choice.probabilities[m] - choice.price * cost / dearest
        mark = " <- answered" if m == answer.scale else ""
        lines.append(f"{m:>8} {choice.probabilities[m]:>9.3f} {cost:>13.4g} {worth:>7.3f}{mark}")
    lines.append(f"worth is P(right) less the price, {choice.price:.4g}, times the cost as a share of the dearest")
    if choice.p_value is None:
        return "\n".join([*lines, f"{choice.reason}: the question was not looked at"])
    strange = ", so that the router does not trust itself here" if choice.out_of_distribution else ""
    lines.append(f"as strange as this were {100 * choice.p_value:.3g} % of the validation questions{strange}")
    lines += [f"{name:>24} {value:.4g}" for name, value in features.items()]
    return "\n".join(lines)
