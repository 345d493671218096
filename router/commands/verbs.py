"""The verbs of this package: `fit-router` and `report`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.runtime.artefact import (
    output_folder,
    place_beside,
    place_said,
    read_artefact,
    refuse_if_filled,
    sha256_file,
)
from export.runtime.errors import MvlmError

if TYPE_CHECKING:
    from router.fit.fit import Fitted
    from router.fit.risk_bound import Bound
    from router.labels import Rescored
    from router.table import Table

    # What scores labels by other metrics, which the program knows and the router does not.
    Rescore = Callable[..., tuple[Any, dict[str, Any]]]

_FOLDER = click.Path(path_type=Path)
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what --out holds.")


class Percent(click.ParamType):
    """A share, written as 1% or as 0.01."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        text = str(value).strip()
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is no share: write 1% or 0.01", param, context)


@click.command("fit-router")
@click.argument("labels", type=_FOLDER, default=Path("labels"))
@click.option("--out", type=_FOLDER, default=Path("router"), show_default=True, help="Folder to write.")
@click.option("--within", type=Percent(), multiple=True, metavar="LOSS",
              help="Bound at most this loss against the finest scale, as 1%. May be given several times; the first"
                   " sets the default price.")  # fmt: skip
@click.option("--confidence", type=Percent(), default="90%", show_default=True, help="Of a risk bound.")
@click.option("--by", type=click.Choice(["task"]), help="Bound it for each task.")
@click.option("--bound", type=click.Choice(["net", "harm"]), default="net", show_default=True,
              help="Bound the net loss, by betting, or how often an answer is made worse, exactly.")  # fmt: skip
@click.option("--out-of-distribution", type=Percent(), default="0.25%", show_default=True,
              help="The share of ordinary questions that may be taken for out of distribution; the fit takes less"
                   " where that costs right answers.")  # fmt: skip
@click.option("--target", type=click.Choice(["score", "agreement", "likelihood"]), default="score", show_default=True,
              help="What counts: `score`, by the metrics that `mvlm label --metric` was told or guessed, or"
                   " `agreement`, the very answer of the finest scale, for labels without scores, or `likelihood`, what"
                   " the model gives to a token of the reference answer, for captions.")  # fmt: skip
@click.option("--metric", "metrics", multiple=True, metavar="[TASK=]METRIC",
              help="Score the labelled answers anew, as `mvlm label --metric` would; repeatable. Where none is for all"
                   " rows, other tasks keep theirs.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of what the estimators draw.")
@_OVERWRITE
@click.pass_obj
def fit_router(
    rescore: Rescore, labels: Path, out: Path, within: tuple[float, ...], confidence: float, by: str | None,
    bound: Bound, out_of_distribution: float, target: str, metrics: tuple[str, ...], seed: int, overwrite: bool,
) -> None:  # fmt: skip
    """Learn from labels how many visual tokens a picture and a question need. Reads no test row.

    \b
    Example:
      mvlm fit-router labels --out router
      mvlm fit-router labels --within 1% --confidence 90% --out bounded
      mvlm fit-router labels --metric contains --out lenient
    """
    from router.alike import left_out
    from router.fit.fit import fit_count, fit_table
    from router.fit.risk_bound import Wanted
    from router.fit.write import write_router
    from router.labels import read_table

    wanted = Wanted(within, confidence, bound, by == "task") if within else None
    if not 0 <= out_of_distribution < 1:
        raise MvlmError(
            f"--out-of-distribution {out_of_distribution:g} is no share of questions: give one from 0 to below 100 %"
        )
    if metrics and target != "score":
        raise MvlmError(f"--target {target} leaves scores aside, so --metric has nothing to do: name one of the two")
    refuse_if_filled(out, overwrite=overwrite)
    whole = read_table(labels, target, _by(metrics, rescore))
    for line in left_out(whole):
        click.echo(line)
    table = replace(whole, facts=whole.facts | _places(labels, whole.facts, out)).fit_rows
    with click.progressbar(length=fit_count(table), label=f"{'fitting the router':<28}", width=30) as bar:
        fitted = fit_table(
            table, seed=seed, progress=bar.update, wanted=wanted, least_p_value=out_of_distribution
        )  # fmt: skip
    with output_folder(out, overwrite=overwrite) as folder:
        facts = write_router(folder, fitted, table, sha256_file(labels / "labels.json"))
    click.echo("\n".join(summary_of_fit(fitted, facts, table)))
    click.echo(f"{out}: router.onnx equals the estimator to {facts['parity_max_difference']:.1g}")
    defaults = (labels, out) == (Path("labels"), Path("router"))
    _say_next("report", *([] if defaults else [str(out), "--labels", str(labels)]))


def _by(metrics: Sequence[str], rescore: Rescore) -> Rescored | None:
    """How labels are scored anew by some metrics; None leaves them as they were labelled."""
    return partial(rescore, metrics=metrics) if metrics else None


def _places(labels: Path, facts: dict[str, Any], out: Path) -> dict[str, str]:
    """Where the labels of a router lie, and the run and rows that they are of, as the folder `out` will say it."""
    places: dict[str, Path] = {name: place_said(labels, facts[name]) for name in ("run", "rows") if name in facts}
    return {name: place_beside(place, out) for name, place in (places | {"labels": labels}).items()}


def summary_of_fit(fitted: Fitted, facts: dict[str, Any], table: Table) -> list[str]:
    """What a fit ended with, for a terminal."""
    lines = [
        f"  {c.name:<16} regret {c.regret.mean():.4f}   log loss {c.log_loss.mean():.4f}" for c in fitted.candidates
    ]
    if table.scored_by:
        lines.append(table.scored_by)
    if table.target != "score":
        lines.append(f"scores are {table.measures}: they do not say that an answer is right")
    lines.append(fitted.why)
    if fitted.constant:
        lines.append("THE ROUTER IS CONSTANT: nothing that it could see helps to choose a scale on these labels.")
    unit = facts["cost_unit"]
    lines += [f"risk bound: {p.words(unit)}" for p in fitted.risk_bounds]
    lines += fitted.ood_rule.words(unit)
    if fitted.escalation:
        what = "an escalation after an unsure answer brings" if fitted.escalation.pays else (
            "an escalation does not pay, and is off:"
        )  # fmt: skip
        lines.append(f"{what} {fitted.escalation.gain.points()} points at equal mean cost, out of fold")
    at = max((p for p in fitted.prices if p.price <= fitted.default_price), key=lambda p: p.price)
    brings = f"mean {at.mean_cost:.1f} {unit}, {100 * at.score:.1f} % {table.measures}, out of fold"
    return [*lines, f"default price {fitted.default_price:.3g} ({brings})"]


@click.command()
@click.argument("router", type=_FOLDER, default=Path("router"))
@click.option("--labels", type=_FOLDER, help="Left out, those that the router was fitted on, where they still are.")
@click.option("--out", type=_FOLDER, default=Path("report"), show_default=True, help="Folder to write.")
@click.option("--granularity", "only_granularity", is_flag=True,
              help="Only print which scale the rows of --labels need, by task. Reads no router.")  # fmt: skip
@click.option("--learning-curve", "curve", is_flag=True,
              help="Also fit on parts of the labels, and say how many pictures are worth labelling.")  # fmt: skip
@_OVERWRITE
@click.pass_obj
def report(
    rescore: Rescore, router: Path, labels: Path | None, out: Path, only_granularity: bool, curve: bool,
    overwrite: bool,
) -> None:  # fmt: skip
    """Judge a router on the test rows, beside everything that it must beat: a page, plots and JSON.

    \b
    Example:
      mvlm report router --labels labels --out report
      mvlm report --granularity --labels labels
    """
    from router.labels import read_table
    from router.report import granularity, summary
    from router.report.evaluate import evaluate, router_of_labels, steps
    from router.report.report import write_report
    from router.report.shown_rows import shown_rows

    if only_granularity:
        labels = labels or Path("labels")
        table = read_table(labels)
        click.echo("\n".join(granularity.lines(granularity.granularity(table), table.scales, table.measures)))
        _say_next("fit-router", *([] if labels == Path("labels") else [str(labels)]))
        return
    refuse_if_filled(out, overwrite=overwrite)
    known = read_artefact(router, "router")
    labelled = known.get("labelled") or {}
    said = labelled.get("labels")
    labels = labels or (place_said(router, said) if said else Path("labels"))
    table = read_table(labels, str(known.get("target", "score")), _by(labelled.get("rescored") or (), rescore))
    facts = router_of_labels(router, table, labels)
    with click.progressbar(length=steps(curve, table), label=f"{'evaluating':<28}", width=30) as bar:
        evaluation = evaluate(router, facts, table, bar.update, curve=curve)
    with output_folder(out, overwrite=overwrite) as folder:
        sources = {
            "labels_sha256": sha256_file(labels / "labels.json"),
            "router_sha256": sha256_file(router / "router.json"),
        }
        write_report(folder, evaluation, table, sources, shown_rows(labels, table.facts))
    click.echo("\n".join(summary.lines(evaluation)))
    click.echo(f"\n{out / 'index.html'}: open it")
    defaults = (router, out) == (Path("router"), Path("report"))
    run, rows = (place_said(labels, table.facts.get(name, name)).as_posix() for name in ("run", "rows"))
    words = [] if run == "run" else [run]
    words += ["--scales", ",".join(str(m) for m in table.scales), *([] if defaults else ["--router", str(router)])]
    # Labels of before do not say of which run they are; then its own rows are the better guess.
    _say_next("export", *words, *(["--rows", rows] if "run" in table.facts and rows != "rows" else []))


def _say_next(*words: str) -> None:
    """The next command, as it can be typed."""
    click.echo(f"next: {shlex.join(['mvlm', *words])}")
