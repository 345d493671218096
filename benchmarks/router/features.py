"""What each group of the router's features costs, and what the router loses without it.

    python -m benchmarks.router.features LABELS [--keep NAME]

What a group brings is measured out of fold on the rows outside the test split, with the network and the trees of the
candidates: log loss and regret of the words alone, of the words with one group, of every feature, and of every feature
but one group. Groups overlap (where a match is high it is also large), so what a group adds to the words and what goes
with it are different questions. Microseconds are those of one question on one core, on a grid of 12 x 12 patches 128
wide: of a whole function, and beside it the share that a group has of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from benchmarks.machine import keep
from export.runtime import features as runtime_features
from router.estimators.candidates import candidates
from router.fit.fit import features, judge, out_of_fold
from router.labels import read_table
from router.table import Table

ESTIMATORS = ("network", "trees")
# A feature belongs to the first group that its name begins with, `match0_` and `match1_` taken off.
GROUPS = {
    "energy of the picture": ("energy_", "log_energy"),
    "norms of the patches": ("norm_", "outstanding_patches"),
    "height of the match": ("peak", "mean", "top"),
    "angle of the match": ("angle",),
    "region: size and spread": ("area", "spread"),
    "rivals": ("rivals",),
    "place": ("row", "column"),
    "match over the pyramid": ("peak_pooled_",),
    "energy lost there": ("lost_there_",),
    "two words together": ("match_",),
    "words": ("hash", "tokens"),
}


def group_of(name: str) -> str:
    """The group of one feature: the longest beginning wins, so that peak_pooled_1 is no height."""
    short = name.split("_", 1)[1] if name.startswith(("match0_", "match1_")) else name
    begins = [(len(start), group) for group, starts in GROUPS.items() for start in starts if short.startswith(start)]
    return max(begins)[1]


def only(table: Table, groups: Collection[str]) -> Table:
    """The table with the features of all other groups set to nothing."""
    names = table.facts["feature_names"]
    kept = {kind: np.array([group_of(name) in groups for name in names[kind]]) for kind in ("image", "question")}
    return replace(table, image=table.image * kept["image"], question=table.question * kept["question"])


def judged(table: Table) -> dict[str, dict[str, float]]:
    """Log loss and regret out of fold, by estimator."""
    found = {}
    for name in ESTIMATORS:
        estimator = candidates(table.scales, seed=0)[name]
        candidate = judge(name, estimator, out_of_fold(estimator, features(table), table), table)
        found[name] = {"log_loss": float(candidate.log_loss.mean()), "regret": float(candidate.regret.mean())}
    return found


def microseconds(call: Callable[[], object]) -> float:
    """The median of many calls."""
    spent = []
    for _ in range(300):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return float(1e6 * np.median(spent))


def costs() -> dict[str, float]:
    """Microseconds of the functions that make the groups, for one question with two matched words."""
    random = np.random.default_rng(0)
    words = random.standard_normal((144, 128)).astype(np.float32)
    tokens = random.standard_normal((8, 128)).astype(np.float32)
    scores = words @ tokens[0]
    grid, usual = scores.reshape(12, 12), words.mean(axis=0)
    large = [random.standard_normal(shape).astype(np.float32) for shape in ((20, 1024), (576, 1024))]
    question = "what colour is the small star?"
    return {
        "picture, once": microseconds(lambda: runtime_features.image_features(words)),
        "question, whole": microseconds(lambda: runtime_features.question_features(question, tokens, words)),
        "question, whole, 20 tokens and 576 patches of width 1024": microseconds(
            lambda: runtime_features.question_features(question, *large)
        ),
        "rivals": 2 * microseconds(lambda: runtime_features._rivals(grid, scores.mean())),
        "energy lost there": 2 * microseconds(lambda: runtime_features._lost_there(70, words, usual)),
        "match over the pyramid": 2 * microseconds(lambda: runtime_features._pyramid(grid[..., None])),
        "two words together": microseconds(lambda: runtime_features._together(np.stack([scores, scores]))),
        "words": microseconds(lambda: runtime_features._hashed(question)),
    }


@click.command()
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--keep", "name", help="Write results/features_NAME.json.")
def main(labels: Path, name: str | None) -> None:
    """Add one group of features to the words, and take one away from all, at a time."""
    table = read_table(labels).fit_rows
    spent = costs()
    whole, words = judged(table), judged(only(table, ["words"]))
    click.echo(f"{'log loss (regret)':<36}" + "".join(f"{name:>20}" for name in ESTIMATORS))
    click.echo(line("every feature", whole))
    click.echo(line("words alone", words))
    found = {}
    for group in (group for group in GROUPS if group != "words"):
        with_it = judged(only(table, ["words", group]))
        without = judged(only(table, set(GROUPS) - {group}))
        found[group] = {"words_and_it": with_it, "all_but_it": without, "microseconds": spent.get(group)}
        cost = f"   {spent[group]:.0f} us" if group in spent else ""
        click.echo(line(f"words and {group}", with_it))
        click.echo(line(f"all but {group}", without) + cost)
    click.echo("   ".join(f"{what}: {us:.0f} us" for what, us in spent.items() if what not in GROUPS))
    if name:
        command = f"python -m benchmarks.router.features LABELS --keep {name}"
        figures = {"every_feature": whole, "words_alone": words, "groups": found, "microseconds": spent}
        click.echo(keep(f"features_{name}", command, **figures))


def line(what: str, by_estimator: dict[str, dict[str, float]]) -> str:
    """One set of features for the terminal."""
    cells = (f"{one['log_loss']:.4f} ({one['regret']:.4f})" for one in by_estimator.values())
    return f"{what:<36}" + "".join(f"{cell:>20}" for cell in cells)


if __name__ == "__main__":
    main()
