"""What a router recovers of tables whose probabilities are known, beside RouteLLM's and RouterBench's ways of deciding.

    python -m benchmarks.router [--quick] [--only TABLE] [--processes 2] [--large] [--keep]

Every table is drawn from a probability of a right answer at each scale that is a known function of the features. A
router sees drawn scores; it is judged on other rows by the probabilities themselves, never by drawn scores, so that
luck has no part in it. *Share* is what it gains over mixing two fixed scales at equal mean cost, in parts of what
choosing by the true probabilities gains there (1 is the best that any router can do).

Letters: n rows, d features, K scales.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from threadpoolctl import threadpool_limits

from benchmarks.machine import keep
from export.runtime.features import FEATURE_VERSION
from router.fit.fit import fit_table, workers
from router.policy import best_mix, choose, follow, price_for_budget
from router.table import Table

Floats = NDArray[np.floating]
SCALES = (1, 9, 36, 144, 576)
COST = np.array(SCALES, float)
BUDGETS = (20, 50, 100, 200, 350)
TEST_ROWS = 20_000
QUESTIONS_PER_PICTURE = 5
GUESS, SLIP, SHARPNESS = 0.15, 0.05, 1.2
# Of a row's scores so many share one draw: what is lucky at one scale is often lucky at the next.
SHARED_LUCK = 0.7


def rise(need: Floats) -> Floats:
    """P(right) at each scale for a need in log2 tokens: (n,) -> (n, K)."""
    return GUESS + (1 - GUESS - SLIP) * expit(SHARPNESS * (np.log2(SCALES) - need[:, None]))


def smooth(x: Floats) -> Floats:
    return rise(5 + 1.5 * x[:, 0] + 1.2 * np.tanh(2 * x[:, -1]) + x[:, 1] * x[:, -2] + 0.8 * np.sin(2 * x[:, 2]))


def separable(x: Floats) -> Floats:
    """Two kinds of row with a gap between them, in one direction across picture and question."""
    return rise(np.where(x[:, 0] + x[:, -1] > 0, 8.0, 1.0))


def exclusive_or(x: Floats) -> Floats:
    """One feature of the picture and one of the question; neither says anything alone."""
    return rise(np.where((x[:, 0] > 0) != (x[:, -1] > 0), 8.0, 1.0))


def more_hurts(x: Floats) -> Floats:
    """For one row in four or so, more tokens make it worse."""
    up = rise(4 + 1.5 * x[:, 1])
    return np.where((x[:, 0] > 0.7)[:, None], up[:, ::-1], up)


def wide(x: Floats) -> Floats:
    return rise(5 + 2 * x[:, 0] - 1.5 * x[:, 300] + 1.5 * x[:, 7] * (x[:, -1] > 0))


def by_task(x: Floats) -> Floats:
    return rise(np.linspace(-1, 10, 8)[x[:, -8:].argmax(axis=1)])


def noise(x: Floats) -> Floats:
    return rise(np.full(len(x), 5.0))


@dataclass(frozen=True)
class Case:
    """A kind of table, how large, and the share that is asked of the router."""

    name: str
    probability: Callable[[Floats], Floats]
    target: float | None
    rows: int = 5000
    d: int = 64


CASES = (
    Case("smooth", smooth, 0.75),
    Case("separable", separable, 0.95),
    Case("exclusive or", exclusive_or, 0.45),
    Case("more hurts", more_hurts, 0.85),
    Case("512 features", wide, 0.6, rows=2000, d=512),
    Case("task decides", by_task, 0.85),
    Case("noise", noise, None),
)


def draw(case: Case, rows: int, random: np.random.Generator) -> tuple[Table, Floats]:
    """A table, and the probabilities (n, K) that its scores were drawn from."""
    x = random.standard_normal((rows, case.d)).astype(np.float32)
    tasks = np.full(rows, "any")
    if case.probability is by_task:  # eight words of the question, of which one is there
        task = random.integers(8, size=rows)
        x[:, -8:] = np.eye(8)[task]
        tasks = task.astype(str)
    if case.probability is separable:
        x[:, [0, -1]] += 2 * random.choice([-1, 1], (rows, 1))
    probability = case.probability(x)
    own = random.random((rows, len(SCALES)))
    luck = np.where(random.random((rows, 1)) < SHARED_LUCK, own[:, :1], own)
    half = case.d // 2
    facts = {
        "cost_unit": "tokens", "feature_version": FEATURE_VERSION, "model_sha256": "none",
        "feature_names": {"image": [f"i{j}" for j in range(half)], "question": [f"q{j}" for j in range(half)]},
    }  # fmt: skip
    ids = np.arange(rows)
    empty = np.full(rows, "", object)
    return Table(
        ids.astype(str), (ids // QUESTIONS_PER_PICTURE).astype(str), tasks, np.full(rows, "val"),
        (luck < probability).astype(np.float32)[:, None], x[:, :half], x[:, half:],
        np.full((rows, len(SCALES)), np.nan), np.full((rows, len(SCALES)), "", object), empty, SCALES, COST, facts,
    ), probability  # fmt: skip


@dataclass(frozen=True)
class Decided:
    """What a way of deciding does at one budget: choices of the test rows, (n,)."""

    budget: float
    choice: NDArray[np.integer]


def ours(table: Table, x: Floats, seed: int) -> tuple[list[Decided], str]:
    fitted = fit_table(table, seed=seed, progress=lambda fits: None)
    probability = fitted.calibration.probability(fitted.estimator.margins(x))
    return [
        Decided(b, choose(probability, COST, price_for_budget(fitted.out_of_fold, COST, b))) for b in BUDGETS
    ], fitted.name


def routellm(table: Table, x: Floats, seed: int) -> tuple[list[Decided], str]:
    """P(the strong model wins) and a threshold that sends the wanted share to it (arXiv 2406.18665, section 3).

    The two models are the cheapest and the dearest scale; a logistic regression stands for the classifier.
    """
    from sklearn.linear_model import LogisticRegression

    seen = np.column_stack([table.image, table.question])
    wins = table.scores[:, -1] > table.scores[:, 0]
    model = LogisticRegression(max_iter=300).fit(seen, wins)
    on_fit, on_test = (model.predict_proba(some)[:, 1] for some in (seen, x))
    decided = []
    for budget in BUDGETS:
        strong = (budget - COST[0]) / (COST[-1] - COST[0])
        threshold = np.quantile(on_fit, 1 - strong)
        decided.append(Decided(budget, np.where(on_test >= threshold, len(COST) - 1, 0)))
    return decided, "logistic"


def routerbench(table: Table, x: Floats, seed: int) -> tuple[list[Decided], str]:
    """Mean quality of the 40 nearest rows, then the best of willingness to pay * quality - cost (arXiv 2403.12031)."""
    from sklearn.neighbors import NearestNeighbors

    seen = np.column_stack([table.image, table.question])
    near = NearestNeighbors(n_neighbors=41).fit(seen)

    def quality(rows: Floats, skip: int) -> Floats:
        return table.scores[near.kneighbors(rows, return_distance=False)[:, skip : skip + 40]].mean(axis=1)

    on_fit, on_test = quality(seen, 1), quality(x, 0)
    return [Decided(b, choose(on_test, COST, price_for_budget(on_fit, COST, b))) for b in BUDGETS], "neighbours"


OTHERS = {"RouteLLM": routellm, "RouterBench": routerbench}


def score(decided: list[Decided], truth: Floats) -> dict[str, list[float]]:
    """By the true probabilities: mean cost, gain over the hull in points, what is attainable there, and the share."""
    fixed = truth.mean(axis=0)
    found: dict[str, list[float]] = {"mean_cost": [], "gain": [], "attainable": []}
    for one in decided:
        spent, right = follow(one.choice, truth, COST).mean
        # The best that a router can do, at the same mean cost: mixing the two prices beside it spends all of it.
        price = price_for_budget(truth, COST, spent)
        under = follow(choose(truth, COST, price), truth, COST).mean
        over = follow(choose(truth, COST, price * (1 - 1e-9) - 1e-12), truth, COST).mean
        part = 0.0 if over[0] <= under[0] else min(1.0, (spent - under[0]) / (over[0] - under[0]))
        hull = float(best_mix(COST, fixed, spent))
        found["mean_cost"].append(spent)
        found["gain"].append(100 * (right - hull))
        found["attainable"].append(100 * (under[1] + part * (over[1] - under[1]) - hull))
    return found


@dataclass(frozen=True)
class Run:
    """One table under one seed: what `ours` chose and how long it took, and the scores of every way."""

    chosen: str
    fit_seconds: float
    scores: dict[str, dict[str, list[float]]]


def run(case: Case, seed: int) -> Run:
    random = np.random.default_rng(seed)
    table, _ = draw(case, case.rows, random)
    test, truth = draw(case, TEST_ROWS, random)
    x = np.column_stack([test.image, test.question])
    started = time.perf_counter()
    decided, chosen = ours(table, x, seed)
    seconds = time.perf_counter() - started
    others = {way: score(decide(table, x, seed)[0], truth) for way, decide in OTHERS.items()}
    return Run(chosen, seconds, {"ours": score(decided, truth)} | others)


def summed_up(case: Case, runs: list[Run]) -> dict[str, object]:
    ways = {}
    for way in runs[0].scores:
        gain, attainable = (np.array([run.scores[way][what] for run in runs]) for what in ("gain", "attainable"))
        share = None if case.target is None else gain / attainable  # (seeds, budgets)
        ways[way] = {
            "share": None if share is None else float(share.mean()),
            "share_by_budget": None if share is None else share.mean(axis=0).tolist(),
            "share_by_seed": None if share is None else share.mean(axis=1).tolist(),
            "gain_points_by_budget": gain.mean(axis=0).tolist(),
            "worst_gain_points": float(gain.min()),
            "mean_cost_by_budget": np.mean([run.scores[way]["mean_cost"] for run in runs], axis=0).tolist(),
        }
    return {"target": case.target, "rows": case.rows, "features": case.d, "chosen": [run.chosen for run in runs],
            "fit_seconds": [run.fit_seconds for run in runs], "ways": ways}  # fmt: skip


def line(name: str, result: dict[str, Any]) -> str:
    """One table for the terminal."""
    shares = "   ".join(
        f"{way} {w['share']:+.2f} (worst {w['worst_gain_points']:+.2f})" if w["share"] is not None
        else f"{way} gain {np.mean(w['gain_points_by_budget']):+.2f} (worst {w['worst_gain_points']:+.2f})"
        for way, w in result["ways"].items()
    )  # fmt: skip
    target = "" if result["target"] is None else f"target {result['target']:.2f}"
    return (
        f"{name:14s} {target:12s} {shares}   {', '.join(sorted(set(result['chosen'])))}"
        f"   {np.mean(result['fit_seconds']):.1f} s"
    )


def fit_limits(rows: int) -> dict[str, float]:
    """How long a fit of 64 features and 5 scales takes in this process, and what it has used at most."""
    table, _ = draw(replace(CASES[0], rows=rows), rows, np.random.default_rng(0))
    started = time.perf_counter()
    fit_table(table, seed=0, progress=lambda fits: None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"rows": rows, "threads": workers(), "seconds": time.perf_counter() - started, "peak_gib": peak}


@click.command()
@click.option("--quick", is_flag=True, help="One seed.")
@click.option("--only", help="One table, by its name.")
@click.option("--processes", default=1, show_default=True, help="Tables at once, each on one thread.")
@click.option("--large", is_flag=True, help="Time a fit of 100,000 rows as well.")
@click.option("--keep", "kept", is_flag=True, help="Write the figures to benchmarks/results/router.json.")
def main(quick: bool, only: str | None, processes: int, large: bool, kept: bool) -> None:
    """Measure every table and print shares beside their targets."""
    seeds = range(1 if quick else 5)
    cases = [case for case in CASES if only in (None, case.name)]
    found, sizes = {}, {}
    # A process each, so that the largest memory is that of one fit.
    for rows in (5000, 100_000) if large else (5000,):
        with ProcessPoolExecutor(1) as pool:
            sizes[rows] = one = pool.submit(fit_limits, rows).result()
        click.echo(f"a fit of {rows:,} rows: {one['seconds']:.0f} s, {one['threads']} threads,"
                   f" {one['peak_gib']:.1f} GiB at most")  # fmt: skip
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, initializer=threadpool_limits, initargs=(1,)) as pool:
        waiting = {case.name: [pool.submit(run, case, seed) for seed in seeds] for case in cases}
        for case in cases:
            runs = []
            for seed, future in enumerate(waiting[case.name]):
                runs.append(future.result())
                click.echo(f"  {case.name}, seed {seed}: {runs[-1].chosen}, {runs[-1].fit_seconds:.1f} s", err=True)
            found[case.name] = summed_up(case, runs)
            click.echo(line(case.name, found[case.name]))
    if kept:
        command = f"python -m benchmarks.router --processes {processes}{' --large' if large else ''} --keep"
        click.echo(keep("router", command, budgets=BUDGETS, tables=found, fits=list(sizes.values())))


if __name__ == "__main__":
    main()
