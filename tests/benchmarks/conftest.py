"""A tiny world of the paper's benchmark, and some of its cells, finished."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import benchmarks.paper.__main__ as paper
from benchmarks.paper.cells import Cell
from benchmarks.paper.train import run_cell
from benchmarks.paper.world import (
    draw_world,
)
from tests.support.paper_cells import SOME, TINY


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return draw_world(tmp_path_factory.mktemp("world"), TINY)


@pytest.fixture(scope="module")
def some_cells() -> list[Cell]:
    return [cell for cell in paper.ordered(1, TINY) if cell.name in SOME[cell.family]]


@pytest.fixture(scope="module")
def finished(world, some_cells) -> Path:
    folder = world.parent / "cells"
    for cell in some_cells:
        run_cell(cell, world, folder, TINY)
    return folder


@pytest.fixture
def here() -> Iterator[ThreadPoolExecutor]:
    """In the place of processes of their own, which would import torch again."""
    with ThreadPoolExecutor(1) as pool:
        yield pool
