"""The paper's benchmark at a size of seconds, for the tests of its parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.paper.cells import Cell, specialist
from benchmarks.paper.stats import Asked
from benchmarks.paper.world import (
    KINDS,
    SCALES,
    Size,
)
from mvlm_core.scenes.rows_folder import SceneCounts

ROOT = Path(__file__).parents[2]


TINY = Size(
    pictures=SceneCounts(train=12, val=14, test=8), patch_steps=1, base_steps=1, exchange_steps=1, cell_steps=2,
    pictures_a_step=2, questions=3, cell_questions=2,
    overrides=(
        ("vision", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
        ("text", {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "num_hidden_layers": 1}),
    ),
)  # fmt: skip


# Of the cells that the results look at, some of each kind.
SOME = {
    "pool": ("base", "nested", "untrained-spatial", *map(specialist, SCALES)), "query": ("base", "uniform"),
    "nested_pool": (),
}  # fmt: skip


def made_up(name: str, seed: int, scores: np.ndarray, *, family="pool", scales=SCALES) -> Asked:
    n = len(scores)
    cell = Cell(name, family, seed, 1, scales=scales)
    names = np.array([f"p{row // 2}" for row in range(n)])
    tasks = np.array([KINDS[row % len(KINDS)] for row in range(n)])
    return Asked(cell, {}, scores.astype(float), tasks, names, np.full(scores.shape, ""), np.full(n, ""))


def counted(work) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return float(counter.get_total_flops())
