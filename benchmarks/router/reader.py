"""What a router of a demo is ahead of the lookup by kind, what it takes to run, and what a budget comes to in a bundle.

`python -m benchmarks.router.reader DEMO --keep`, where DEMO is what `mvlm demo` left.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.machine import keep
from export.runtime import Runtime
from export.runtime.backends.onnx import Device, open_session
from export.runtime.routing.reading import Read, read_patches, read_question
from export.runtime.routing.router import Terms
from export.runtime.routing.router_folder import READER_FILE, ROUTER_FILE
from mvlm_core.data.reading import read_rows
from router.estimators.base import PlattScaling
from router.estimators.candidates import candidates
from router.estimators.novelty import Familiarity
from router.estimators.reader import Reader
from router.fit.fit import features, seen_by
from router.graph.ask import ask_graph
from router.graph.decision import router_graph
from router.graph.reader import picture_graph
from router.labels import read_table
from router.metrics import Resamples, interval
from router.report.budgets import LOOKUP, Contender, samples
from router.table import Table

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
        "spent": spent(demo, pictures), "microseconds": _microseconds(demo), **reader_alone(demo / "labels"),
    }  # fmt: skip
    click.echo(json.dumps(figures, indent=1))
    if kept:
        name = f"reader_{about['family']}_seed{about['seed']}"
        click.echo(keep(name, "python -m benchmarks.router.reader demo --keep", **figures))


def reader_alone(labels: Path) -> dict[str, Any]:
    """A reader and trees of features, fitted on nine tenths of the pictures and calibrated on the rest, at exactly each
    budget over the lookup; and what the reader's graphs take."""
    table = read_table(labels)
    fit, test = table.fit_rows, table.test_rows
    names = np.random.default_rng(1).permutation(np.unique(fit.groups))
    rest = np.isin(fit.groups, names[: len(names) // 10])
    own, held = fit.take(~rest), fit.take(rest)
    resamples = Resamples(test.groups)
    means = {task: fit.scores[fit.tasks == task].mean(axis=0) for task in np.unique(fit.tasks)}
    looked_up = np.array([means[task] for task in test.tasks])
    theirs = samples(Contender.plain(LOOKUP, looked_up, looked_up, test.cost), test, list(_BUDGETS), resamples)
    found: dict[str, Any] = {}
    for name, estimator in (("trees", candidates(table.scales, 0)["trees"]), ("reader", Reader(table.scales))):
        started = time.process_time()
        estimator.fit(seen_by(estimator, own), own.targets, own.tasks)
        seconds = time.process_time() - started
        calibration = PlattScaling(per_scale=True).fit(estimator.margins(seen_by(estimator, held)), held.scores)
        said = calibration.probability(estimator.margins(seen_by(estimator, test)))
        ahead = samples(Contender.plain(name, said, said, test.cost), test, list(_BUDGETS), resamples) - theirs
        found[name] = {
            "fit_cpu_s": round(seconds, 1), "mean": asdict(interval(ahead.mean(axis=0))),
            "at": {f"{budget:g}": asdict(interval(one)) for budget, one in zip(_BUDGETS, ahead, strict=True)},
        }  # fmt: skip
    assert isinstance(estimator, Reader)
    return {"fitted_alone": found, "reader_graphs": _graphs(estimator, calibration, test)}


def _graphs(estimator: Reader, calibration: PlattScaling, test: Table) -> dict[str, Any]:
    """Bytes, parity on some test rows, and microseconds of one thread's processor time, of a reader's two graphs."""
    some = test.take(np.arange(200))
    usual = Familiarity(test.image.shape[1]).fit(features(test), test.groups)
    widths = {"d_image": test.image.shape[1], "d_question": test.question.shape[1]}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in (ROUTER_FILE, READER_FILE)]
        known = {"scales": list(test.scales)}
        for file, graph in zip(
            files, (router_graph(estimator, calibration, usual, known, **widths), picture_graph(estimator)), strict=True
        ):
            file.write_bytes(graph.SerializeToString())
        probability, *_ = ask_graph(files[0], some, 0.0)
        said = calibration.probability(estimator.margins(seen_by(estimator, some)))
        question, picture = (open_session(file, Device(threads=1)) for file in files)
        assert some.reading is not None
        patches = np.asarray(some.reading.patches[some.reading.picture[:1]], np.float32) @ some.reading.projection.T
        feeds = {
            "image": some.image[:1], "question": some.question[:1], "price": np.asarray(0.0, np.float32),
            "cost": test.cost.astype(np.float32)[None], "picture": picture.run(["picture"], {"patches": patches})[0],
            "words": some.reading.questions(np.array([0])) @ some.reading.projection.T,
        }  # fmt: skip
        return {
            "bytes": {file.name: file.stat().st_size for file in files},
            "parity": float(np.abs(probability - said).max()),
            "picture_us": _median(lambda: picture.run(["picture"], {"patches": patches})),
            "question_us": _median(lambda: question.run(["probability"], feeds)),
        }


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
