"""What a router of a demo is ahead of the lookup by kind, what it takes to run, and what a budget comes to in a bundle.

`python -m benchmarks.router.reader DEMO --keep`, where DEMO is what `mvlm demo` left.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.machine import keep
from export.runtime import Runtime
from export.runtime.routing.reading import Read, read_patches, read_question
from export.runtime.routing.router import Terms
from mvlm_core.data.reading import read_rows

_ROUNDS = 200
_BUDGETS = (4.0, 9.0, 18.0, 36.0, 60.0)


@click.command()
@click.argument("demo", type=click.Path(path_type=Path, exists=True))
@click.option("--pictures", default=300, show_default=True, help="Test pictures that the bundle is asked about.")
@click.option("--keep", "kept", is_flag=True, help="Write the figures into results/.")
def main(demo: Path, pictures: int, kept: bool) -> None:
    """Judge the router of a demo from its report, its files and its bundle."""
    about, report, fit, router = (
        json.loads((demo / name).read_text())
        for name in ("demo.json", "report/report.json", "router/report.json", "router/router.json")
    )
    figures: dict[str, Any] = {
        "estimator": router["estimator"], "candidates": fit["candidates"], "parity": router["parity_max_difference"],
        "fitted_on": router["fitted_on"], "seconds": about["seconds"],
        "ahead_of_the_lookup": _ahead(report), "ceiling": report["ceiling"],
        "bytes": {name: (demo / "router" / name).stat().st_size for name in router["files"] if name.endswith(".onnx")},
        "spent": spent(demo, pictures), "microseconds": _microseconds(demo),
    }  # fmt: skip
    click.echo(json.dumps(figures, indent=1))
    if kept:
        name = f"reader_{about['family']}_seed{about['seed']}"
        click.echo(keep(name, "python -m benchmarks.router.reader demo --keep", **figures))


def _ahead(report: dict[str, Any]) -> dict[str, Any]:
    """Of each policy but the lookup itself, paired, by budget and averaged over them."""
    return {
        policy["name"]: {"mean": policy["mean_ahead"], "at": {f"{at['budget']:g}": at["ahead"] for at in policy["at"]}}
        for policy in report["policies"]
    }


def spent(demo: Path, pictures: int) -> dict[str, Any]:
    """What the bundle's own choices cost in the mean for each budget, on questions about so many test pictures."""
    runtime = Runtime.load(demo / "bundle", threads=1)
    router, by_picture = runtime.router, defaultdict(list)
    assert router is not None
    for row in read_rows(demo / "rows"):
        if row.split == "test":
            by_picture[row.group].append(row)
    budgets = [budget for budget in _BUDGETS if router.costs[0] < budget < router.costs[-1]]
    prices = {budget: router.price(Terms(budget=budget)) for budget in budgets}
    costs: dict[float, list[float]] = {budget: [] for budget in budgets}
    strange = 0
    for rows in list(by_picture.values())[:pictures]:
        view = runtime.look(rows[0].pictures[0].read())
        for row in rows:
            choices = view.choose_at(row.question, list(prices.values()))
            for budget, choice in zip(budgets, choices, strict=True):
                costs[budget].append(choice.cost)
                strange += choice.out_of_distribution
    asked = len(costs[budgets[0]])
    return {
        "questions": asked, "out_of_distribution": strange / (asked * len(budgets)),
        "by_budget": {f"{budget:g}": float(np.mean(costs[budget])) for budget in budgets},
    }  # fmt: skip


def _microseconds(demo: Path) -> dict[str, float]:
    """Of one thread's time, medians: features of a picture and a question, and the router's graphs."""
    runtime = Runtime.load(demo / "bundle", threads=1)
    router = runtime.router
    row = next(row for row in read_rows(demo / "rows") if row.split == "test")
    view = runtime.look(row.pictures[0].read())
    assert router is not None
    assert view.sight is not None
    tokens = runtime.table.rows(runtime.prompt.question_ids(row.question))
    features, image = runtime._of_question(view, row.question), view.sight.features
    read = None if view.sight.read is None else Read(view.sight.read, read_question(tokens))
    words = view.words
    found = {
        "features and picture graph, once a picture": _median(lambda: runtime.see(words)),
        "features of a question": _median(lambda: runtime._of_question(view, row.question)),
        "router, a question": _median(lambda: router.probabilities(image, features, read)),
    }
    if read is not None:
        found["picture graph"] = _median(lambda: router.look(words))
        found["patches for it"] = _median(lambda: read_patches(words))
    return found


def _median(work: Callable[[], Any]) -> float:
    """Microseconds of processor time."""
    taken = []
    for i in range(_ROUNDS + 10):
        start = time.thread_time()
        work()
        if i >= 10:
            taken.append(time.thread_time() - start)
    return round(1e6 * float(np.median(taken)), 1)


if __name__ == "__main__":
    main()
