"""What each group of the router's features costs, and what the router loses without it.

    python benchmarks/features.py LABELS [--keep NAME]

What a group brings is measured out of fold on the rows outside the test split, with the network of the candidates: log
loss and regret with every feature, and with one group set to nothing. Microseconds are those of one question on one
core, on a grid of 12 x 12 patches 128 wide: of a whole function, and beside it the share that a group has of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from machine import keep

from export.runtime import features as runtime_features
from router.candidates import OnBasis
from router.fit import _judge, features, out_of_fold
from router.learned import ScaleNetwork
from router.table import Table, read_table

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


def without(table: Table, group: str) -> Table:
    """The table with the features of a group set to nothing."""
    names = table.facts["feature_names"]
    kept = {kind: np.array([group_of(name) != group for name in names[kind]]) for kind in ("image", "question")}
    return replace(table, image=table.image * kept["image"], question=table.question * kept["question"])


def judged(table: Table) -> tuple[float, float]:
    """Log loss and regret out of fold."""
    estimator = OnBasis(ScaleNetwork())
    candidate = _judge("", estimator, out_of_fold(estimator, features(table), table), table)
    return float(candidate.log_loss.mean()), float(candidate.regret.mean())


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
    """Take one group of features away at a time."""
    table = read_table(labels).fit_rows
    whole = judged(table)
    spent = costs()
    click.echo(f"{'every feature':<26} log loss {whole[0]:.4f}   regret {whole[1]:.4f}")
    found = {}
    for group in GROUPS:
        loss, regret = judged(without(table, group))
        found[group] = {"log_loss_without": loss, "regret_without": regret, "microseconds": spent.get(group)}
        cost = f"{spent[group]:.0f} us" if group in spent else ""
        click.echo(f"without {group:<26} log loss {loss - whole[0]:+.4f}   regret {regret - whole[1]:+.4f}   {cost}")
    click.echo("   ".join(f"{what}: {us:.0f} us" for what, us in spent.items() if what not in GROUPS))
    if name:
        command = f"python benchmarks/features.py LABELS --keep {name}"
        figures = {"log_loss": whole[0], "regret": whole[1], "groups": found, "microseconds": spent}
        click.echo(keep(f"features_{name}", command, **figures))


if __name__ == "__main__":
    main()
