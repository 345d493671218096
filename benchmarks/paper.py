"""The two papers' claims, at small scale: `python benchmarks/paper.py`, which goes on where it was stopped.

    python benchmarks/paper.py [--quick] [--seeds 3] [--only cells|cost|results] [--processes 2] [--out paper_out]

Every cell is one model: a short stage of training from a base, and all test questions at every scale. `cells` trains
what is missing, `cost` counts FLOPs and takes milliseconds on a quiet machine, `results` writes what is there to
benchmarks/results/paper.json and draws its pictures.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: every cell has one thread

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import click
from machine import keep
from paper_cells import Cell, cells_of
from paper_train import CELL, run_cell
from paper_world import Size, draw_world

from mvlm_core.scene_rows import SceneCounts

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
    cells = ordered(1 if quick else seeds, size, last_point=1 if quick else 2)
    if only in (None, "cells"):
        rows = draw_world(out, size)
        train_missing(cells, rows, out / "cells", size, processes)


def ordered(seeds: int, size: Size, *, last_point: int = 2) -> list[Cell]:
    """All cells, those first that are worth most: all of seed 0, then each point of the others."""
    cells = [cell for seed in range(seeds) for cell in cells_of(seed, size) if cell.point <= last_point]
    return sorted(cells, key=lambda cell: (cell.seed > 0, cell.point > 1 and cell.seed > 0, cell.seed))


def train_missing(cells: Sequence[Cell], rows: Path, folder: Path, size: Size, processes: int) -> None:
    """Train the cells that are not there, each when what it starts from is."""
    waiting = [cell for cell in cells if not (folder / cell.key / CELL).is_file()]
    click.echo(f"{len(cells) - len(waiting)} of {len(cells)} cells are there")
    running: dict[Future[Path], Cell] = {}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        while waiting or running:
            able = [c for c in waiting if c.start_key is None or (folder / c.start_key / CELL).is_file()]
            for cell in able[: processes - len(running)]:
                running[pool.submit(run_cell, cell, rows, folder, size)] = cell
                waiting.remove(cell)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                future.result()
                click.echo(f"{cell.key}: {len(waiting) + len(running)} left")


if __name__ == "__main__":
    main()
