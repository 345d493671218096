"""What a router loses that was fitted without answers: on `agreement` labels, beside one fitted on right answers.

`python -m benchmarks.router.agreement` takes the labels of a demo (demo/labels, unless others are named). Both are
fitted on the same rows and judged by right answers on the test rows, each at exactly the same mean cost, paired by
picture. The candidate that reads patches is left out of both.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from numpy.typing import NDArray

from benchmarks.machine import keep
from router.fit.fit import fit_table
from router.fit.write import write_router
from router.labels import read_table
from router.metrics import Interval, Resamples, interval
from router.report.budgets import Contender, samples
from router.report.evaluate import BUDGETS, shipped
from router.table import Table


def contender(table: Table, judged: Table, seed: int) -> Contender:
    """A router that is fitted on the fit rows of a table, and decides on the test rows of one of the same rows."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = replace(table, reading=None).fit_rows
        fitted = fit_table(rows, seed=seed, progress=lambda fits: None)
        facts = write_router(folder, fitted, rows, "")
        return shipped(folder, facts, judged)[0]


def compared(labels: Path, seed: int = 0) -> dict[str, Any]:
    """Gains over mixing fixed scales of both, and what the one fitted on agreement is behind, at each budget."""
    right = read_table(labels)
    test, resamples = right.test_rows, Resamples(right.test_rows.groups)
    budgets = [float(budget) for budget in BUDGETS if test.cost[0] < budget < test.cost[-1]]
    gains: dict[str, NDArray[Any]] = {
        name: samples(contender(table, right, seed), test, budgets, resamples)
        for name, table in (("right answers", right), ("agreement", read_table(labels, "agreement")))
    }
    behind = gains["agreement"] - gains["right answers"]  # (budgets, 1 + R)
    return {
        "rows": len(test), "pictures": len(set(test.groups.tolist())), "budgets": budgets,
        "gains": {name: [_points(interval(gain)) for gain in of_name] for name, of_name in gains.items()},
        "agreement_minus_right": [_points(interval(one)) for one in behind],
        "mean_agreement_minus_right": _points(interval(behind.mean(axis=0))),
    }  # fmt: skip


def _points(found: Interval) -> dict[str, float]:
    """An interval in points."""
    return {name: round(100 * getattr(found, name), 3) for name in ("value", "low", "high")}


@click.command()
@click.argument("labels", type=click.Path(path_type=Path), default=Path("demo/labels"))
@click.option("--seed", default=0, show_default=True)
def main(labels: Path, seed: int) -> None:
    """Fit both routers on LABELS and keep how they compare."""
    figures = compared(labels, seed)
    for budget, behind in zip(figures["budgets"], figures["agreement_minus_right"], strict=True):
        click.echo(f"at {budget:g}: {behind['value']:+.2f} [{behind['low']:.2f}, {behind['high']:.2f}] points")
    click.echo(keep("agreement", f"python -m benchmarks.router.agreement --seed {seed}", **figures))


if __name__ == "__main__":
    main()
