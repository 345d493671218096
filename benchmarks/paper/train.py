"""Trains one cell and asks it every test question; its folder appears when it is whole."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.paper.cells import Cell
from benchmarks.paper.memory import remembering
from benchmarks.paper.samplers import sample_patches
from benchmarks.paper.world import Size, answer_stage, base_config, exchanged_config
from export.runtime.artefact import describe, output_folder, write_json
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.data.reading import read_rows
from mvlm_core.data.row import single_questions
from mvlm_core.label.sweep import Sweep, sweep_pictures
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor
from mvlm_core.scenes.patch_tags import PatchTags
from mvlm_core.train.build import resolve_config
from mvlm_core.train.config import TrainConfig
from mvlm_core.train.packing import Packer
from mvlm_core.train.plan import Group, Plan, group_rows
from mvlm_core.train.recipe import freeze, train
from mvlm_core.train.stages import StageConfig
from mvlm_core.train.trainer import StageTrainer, training_arguments

CELL, SCORES, LABELS, RUN = "cell.json", "scores.npz", "labels.npz", "run"
_MAX_NEW_TOKENS = 6
_LOSS_PARTS = 10


def run_cell(cell: Cell, rows: Path, cells: Path, size: Size) -> Path:
    """Train a cell in `cells`, where the one it starts from lies, and return its folder."""
    torch.set_num_threads(1)
    began, used = time.perf_counter(), _core_seconds()
    with output_folder(cells / cell.key) as folder:
        model, processor, losses = _learned(cell, rows, cells, folder, size)
        trained = _core_seconds()
        splits = ("val", "test") if cell.labelled else ("test",)
        sweep = Sweep(folder / RUN, rows, cell.scales, splits, max_new_tokens=_MAX_NEW_TOKENS)
        asked = _ask(model, processor, sweep)
        _write_scores(asked, folder, cell)
        facts = {
            "key": cell.key, "scales": list(cell.scales),
            "steps": cell_steps(cell, size), "losses": losses, "train_core_seconds": trained - used,
            "ask_core_seconds": _core_seconds() - trained, "seconds": time.perf_counter() - began,
        }  # fmt: skip
        write_json(folder / CELL, describe("cell", **facts))
    return cells / cell.key


def cell_steps(cell: Cell, size: Size) -> int:
    """Steps of a cell behind its base; those of a base, behind nothing."""
    if cell.name == "base":
        return size.base_steps if cell.family == "pool" else size.exchange_steps
    return max(1, round(size.cell_steps * cell.compute)) if cell.show else 0


def _learned(
    cell: Cell, rows: Path, cells: Path, folder: Path, size: Size
) -> tuple[MvlmForConditionalGeneration, MvlmProcessor, list[float]]:
    """The model of a cell, its processor, and its loss over the course of training."""
    begin = cells / cell.start_key / RUN if cell.start_key else None
    if cell.name == "base":
        config = (
            base_config(rows, cell.seed, size)
            if begin is None
            else exchanged_config(cell.family, begin, rows, cell.seed, size)
        )
        train(
            resolve_config(config),
            folder / RUN,
            resume=False,
            overwrite=False,
            progress=lambda name, steps: lambda told: None,
            say=print,
        )
        return *load_run(folder / RUN), []
    assert begin
    model, processor = load_run(begin)
    sample_patches(model, cell.sampling)
    losses: list[float] = []
    if cell.show:
        config = base_config(rows, cell.seed, size)
        stage = answer_stage(
            cell.name, cell_steps(cell, size), cell.show, pictures=size.pictures_a_step,
            questions=size.cell_questions, frozen=cell.frozen, rate=size.cell_rate,
        )  # fmt: skip
        same_tower = "vision_tower" in cell.frozen
        with remembering(model) if same_tower else nullcontext():
            losses = _train_stage(model, processor, config, stage, folder / "trainer")
    if cell.kept:
        model.save_pretrained(folder / RUN)
        processor.save_pretrained(folder / RUN)
    return model.eval(), processor, losses


def _train_stage(
    model: MvlmForConditionalGeneration, processor: MvlmProcessor, config: TrainConfig, stage: StageConfig, folder: Path
) -> list[float]:
    """One stage as `mvlm train` runs it, on a model at hand; the mean loss of each tenth."""
    # Cells of one seed see the same pictures in the same order.
    plan = Plan(of_splits(config.rows, ("train",)), config.scales, stage, seed=config.seed)
    tags = PatchTags(config.rows, processor, stage.tag_weights, total=stage.patch_loss_weight)
    freeze(model, stage.frozen)
    trainer = StageTrainer(
        model, stage, plan,
        args=training_arguments(config, stage, folder, steps=len(plan.schedule.scales)),
        data_collator=Packer(processor, tags, max_tokens=stage.max_tokens),
    )  # fmt: skip
    trainer.run(None)
    shutil.rmtree(folder, ignore_errors=True)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return [float(np.mean(part)) for part in np.array_split(losses, min(_LOSS_PARTS, len(losses)))]


@lru_cache(maxsize=1)
def _data(rows: Path) -> list[Group]:
    """The pictures of every split; a process reads them once for all of its cells."""
    return group_rows(single_questions(read_rows(rows)))


def of_splits(rows: Path, splits: Sequence[str]) -> list[Group]:
    return [picture for picture in _data(rows) if picture.rows[0].split in splits]


def _ask(
    model: MvlmForConditionalGeneration, processor: MvlmProcessor, sweep: Sweep
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The sweep's lines for every question of some splits."""
    pictures = of_splits(sweep.rows, sweep.splits)
    labels, features = [], []
    for start in range(0, len(pictures), sweep.pictures_per_part):
        part = pictures[start : start + sweep.pictures_per_part]
        of_part = sweep_pictures(model, processor, part, sweep)
        labels += of_part[0]
        features += of_part[1]
    return labels, features


def _write_scores(asked: tuple[list[dict[str, Any]], list[dict[str, Any]]], folder: Path, cell: Cell) -> None:
    """What was right, (n, K), in the order of the rows; for a labelled cell what a router may see as well."""
    labels, features = asked
    k = len(cell.scales)
    first = labels[::k]
    names = {name: np.array([line[name] for line in first]) for name in ("id", "group", "task", "split", "answer")}
    scores = np.array([line["score"] for line in labels], np.float32).reshape(-1, k)
    predictions = np.array([line["prediction"] for line in labels]).reshape(-1, k)
    np.savez_compressed(folder / SCORES, **names, scores=scores, predictions=predictions, scales=np.array(cell.scales))
    if cell.labelled:
        seen = {name: np.array([line[name] for line in features], np.float32) for name in ("image", "question")}
        margins = np.array([line["margin"] for line in labels], np.float32).reshape(-1, k)
        np.savez_compressed(folder / LABELS, margins=margins, **seen)


def _core_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
