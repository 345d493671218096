"""The two papers' claims, at small scale: `python -m benchmarks.paper`, which goes on where it was stopped.

    python -m benchmarks.paper [--quick] [--seeds 3] [--only cells|cost|results] [--processes 2] [--out paper_out]

Every cell is one model: a short stage of training from a base, and all test questions at every scale. `cells` trains
what is missing, `cost` counts FLOPs and takes milliseconds on a quiet machine, `results` writes what is there to
benchmarks/results/paper.json and draws its pictures.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: every cell has one thread

import json
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import RESULTS, keep
from benchmarks.paper.cells import Cell, Family, cells_of, nested
from benchmarks.paper.cost import measure, of_their_size
from benchmarks.paper.gallery import draw_gallery
from benchmarks.paper.plots import draw
from benchmarks.paper.results import results
from benchmarks.paper.train import CELL, RUN, of_splits, run_cell
from benchmarks.paper.world import Size, draw_world
from export.runtime.artefact import write_json
from export.runtime.errors import MvlmError
from mvlm_core.scenes.rows_folder import SceneCounts

COSTS = "costs.json"
QUICK = Size(
    pictures=SceneCounts(train=600, val=60, test=60), patch_steps=60, base_steps=60, exchange_steps=20, cell_steps=20
)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("paper_out"), show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="One seed, the first point's cells, a few steps: a rehearsal.")
@click.option("--only", type=click.Choice(["cells", "cost", "results"]), help="One part instead of all in turn.")
@click.option("--processes", default=2, show_default=True, help="Cells at once, each on one thread.")
def main(out: Path, seeds: int, quick: bool, only: str | None, processes: int) -> None:
    """Train what is missing in OUT, measure its cost, and keep the results."""
    out = out.absolute()
    size = QUICK if quick else Size()
    cells = ordered(1 if quick else seeds, size, last_point=1 if quick else 3)
    rows, folder = draw_world(out, size), out / "cells"
    if only in (None, "cells"):
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            train_missing(cells, rows, folder, size, pool, at_once=processes)
    if only in (None, "cost"):
        write_json(out / COSTS, measure_costs(cells, folder))
    if only in (None, "results"):
        show(cells, rows, out, size, quick=quick)


def measure_costs(cells: Sequence[Cell], folder: Path) -> dict[str, Any]:
    """Of the first seed's one model of each family. Raises `MvlmError` while there is none."""
    models = first_models(cells, folder)
    if not models:
        raise MvlmError(f"{folder} holds no trained model yet: run this with --only cells first")
    return {"models": [measure(run, family) for family, run in models.items()], "their_size": of_their_size()}


def first_models(cells: Sequence[Cell], folder: Path) -> dict[Family, Path]:
    """Each family's own one model of the first seed that has it."""
    found: dict[Family, Path] = {}
    for cell in cells:
        if cell.name == nested(cell.family) and (folder / cell.key / CELL).is_file():
            found.setdefault(cell.family, folder / cell.key / RUN)
    return found


def show(cells: Sequence[Cell], rows: Path, out: Path, size: Size, *, quick: bool) -> None:
    """Write what is there: JSON, plots, the gallery and the summary; of a rehearsal into OUT alone."""
    costs = json.loads((out / COSTS).read_text()) if (out / COSTS).is_file() else None
    told = results(cells, out / "cells", size, costs)
    folder = out / "results" if quick else RESULTS
    folder.mkdir(exist_ok=True)
    if quick:
        write_json(folder / "paper.json", told)
    else:
        keep("paper", "python -m benchmarks.paper", **told)
    test = of_splits(rows, ("test",))
    drawn = [*draw(told, folder), *draw_gallery(first_models(cells, out / "cells"), test, rows, folder)]
    click.echo("\n".join([*told["summary"], f"{folder / 'paper.json'}, and {len(drawn)} pictures beside it"]))


def ordered(seeds: int, size: Size, *, last_point: int = 3) -> list[Cell]:
    """All cells, those first that are worth most."""
    cells = [cell for seed in range(seeds) for cell in cells_of(seed, size) if cell.point <= last_point]
    return sorted(cells, key=lambda cell: (_turn(cell), cell.seed, cell.point))


def _turn(cell: Cell) -> int:
    """First one seed of both families, the other seeds' specialists, then nested_pool; last the others' ablations."""
    if cell.family == "nested_pool":
        return 2
    if cell.point == 3:
        return 3
    return 0 if cell.seed == 0 else 1 if cell.point < 2 else 4


def train_missing(cells: Sequence[Cell], rows: Path, folder: Path, size: Size, pool: Executor, *, at_once: int) -> None:
    """Train the cells that are not there, each when what it starts from is.

    Raises `MvlmError` at the end that names the cells that broke; what starts from them is left out, the rest is done.
    """
    waiting = [cell for cell in cells if not (folder / cell.key / CELL).is_file()]
    click.echo(f"{len(cells) - len(waiting)} of {len(cells)} cells are there")
    running: dict[Future[Path], Cell] = {}
    broken: dict[str, str] = {}
    while running or waiting:
        able = [c for c in waiting if c.start_key is None or (folder / c.start_key / CELL).is_file()]
        if not running and not able:
            break
        for cell in able[: at_once - len(running)]:
            running[pool.submit(run_cell, cell, rows, folder, size)] = cell
            waiting.remove(cell)
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            cell = running.pop(future)
            if error := future.exception():
                broken[cell.key] = str(error).splitlines()[0]
            click.echo(f"{cell.key}: {'broken' if error else 'done'}, {len(waiting) + len(running)} left")
    if broken or waiting:
        told = [f"  {key}: {why}" for key, why in broken.items()]
        left = [f"  {cell.key}: {cell.start_key} is not there" for cell in waiting]
        raise MvlmError("\n".join([f"{len(told) + len(left)} cells were not trained:", *told, *left]))


if __name__ == "__main__":
    main()
