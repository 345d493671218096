"""The verbs of this package: `fit-router` and `evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from export.runtime.artefact import output_folder, refuse_if_filled, sha256_file

_FOLDER = click.Path(path_type=Path)
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what --out holds.")


@click.command("fit-router")
@click.argument("labels", type=_FOLDER, default=Path("labels"))
@click.option("--out", type=_FOLDER, default=Path("router"), show_default=True, help="Folder to write.")
@click.option("--seed", default=0, show_default=True, help="Of what the estimators draw.")
@_OVERWRITE
def fit_router(labels: Path, out: Path, seed: int, overwrite: bool) -> None:
    """Learn from labels how many visual tokens a picture and a question need. Reads no test row.

    \b
    Example:
      mvlm fit-router labels --out router
    """
    from .fit import fit_count, fit_table, write_router
    from .table import read_table

    refuse_if_filled(out, overwrite=overwrite)
    table = read_table(labels).fit_rows
    with click.progressbar(length=fit_count(), label=f"{'fitting the router':<28}", width=30) as bar:
        fitted = fit_table(table, seed=seed, progress=bar.update)
    with output_folder(out, overwrite=overwrite) as folder:
        facts = write_router(folder, fitted, table, sha256_file(labels / "labels.json"))
    for candidate in fitted.candidates:
        regret, log_loss = candidate.regret.mean(), candidate.log_loss.mean()
        click.echo(f"  {candidate.name:<14} regret {regret:.4f}   log loss {log_loss:.4f}")
    click.echo(fitted.why)
    if fitted.constant:
        click.echo("THE ROUTER IS CONSTANT: nothing that it could see helps to choose a scale on these labels.")
    at = max((p for p in fitted.prices if p.price <= fitted.default_price), key=lambda p: p.price)
    brings = f"mean {at.mean_cost:.1f} {facts['cost_unit']}, {100 * at.score:.1f} % right out of fold"
    click.echo(
        f"{out}: router.onnx equals the estimator to {facts['parity_max_difference']:.1g};"
        f" default price {fitted.default_price:.3g} ({brings})"
    )
    defaults = (labels, out) == (Path("labels"), Path("router"))
    click.echo("next: mvlm evaluate" + ("" if defaults else f" {out} --labels {labels}"))


@click.command()
@click.argument("router", type=_FOLDER, default=Path("router"))
@click.option("--labels", type=_FOLDER, default=Path("labels"), show_default=True)
@click.option("--out", type=_FOLDER, default=Path("report"), show_default=True, help="Folder to write.")
@_OVERWRITE
def evaluate(router: Path, labels: Path, out: Path, overwrite: bool) -> None:
    """Judge a router on the test rows, beside everything that it must beat: a page, plots and JSON.

    \b
    Example:
      mvlm evaluate router --labels labels --out report
    """
    from . import summary
    from .evaluate import STEPS, read_router
    from .evaluate import evaluate as judge
    from .report import write_report
    from .table import read_table

    refuse_if_filled(out, overwrite=overwrite)
    table = read_table(labels)
    facts = read_router(router, table, labels)
    with click.progressbar(length=STEPS, label=f"{'evaluating':<28}", width=30) as bar:
        evaluation = judge(router, facts, table, bar.update)
    with output_folder(out, overwrite=overwrite) as folder:
        sources = {
            "labels_sha256": sha256_file(labels / "labels.json"),
            "router_sha256": sha256_file(router / "router.json"),
        }
        write_report(folder, evaluation, table, sources)
    click.echo("\n".join(summary.lines(evaluation)))
    click.echo(f"\n{out / 'index.html'}: open it")
    defaults = (router, out) == (Path("router"), Path("report"))
    scales = ",".join(str(m) for m in table.scales)
    click.echo(f"next: mvlm export --scales {scales}" + ("" if defaults else f" --router {router}"))
