"""Routers fitted on drawn labels and judged on their test rows, each once for the process."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

from router.fit.fit import fit_table
from router.fit.write import write_router
from router.labels import read_table
from router.report.evaluate import evaluate, router_of_labels
from tests.support.labels_maker import (
    FLAT,
    NOISE,
    PICTURE_DECIDES,
    Kind,
    Recipe,
    kinds,
    make_labels,
    quick,
)

RECIPES = {
    "question": Recipe(rows=2400, groups=240),
    "picture": replace(PICTURE_DECIDES, rows=2400, groups=240),
    "noise": NOISE,
    "flat": FLAT,
    "guessed": Recipe(
        rows=2400, groups=240, scales=PICTURE_DECIDES.scales, picture=3.0,
        # `hard` is right about half of the time at best, which is still far more than a guess.
        kinds=kinds(
            colour=Kind(2.5, "picture"), where=Kind(2.5, "picture", learned=False), easy=Kind(-8.0), hard=Kind(9.0)
        ),
    ),
}  # fmt: skip


@functools.cache
def judged(name):
    """A recipe of `RECIPES`, fitted and evaluated: (folder, table, evaluation)."""
    folder = Path(tempfile.mkdtemp())
    make_labels(folder / "labels", RECIPES[name])
    table = read_table(folder / "labels")
    with quick():
        fit_into(folder / "router", table)
        facts = router_of_labels(folder / "router", table, folder / "labels")
        return folder, table, evaluate(folder / "router", facts, table, lambda steps: None)


def fit_into(folder, table, seed=0):
    folder.mkdir()
    write_router(folder, fit_table(table.fit_rows, seed=seed, progress=lambda fits: None), table.fit_rows, "")
    return folder
