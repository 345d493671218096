"""The small world of the paper's benchmark: which questions, how many pictures, and the recipes as configurations.

A *base* is trained at the finest scale alone, as M3 begins from LLaVA-1.5 and MQT's first stage shows all tokens. Every
other cell is a short stage from there, all of the same number of steps. The tower learns what is in a patch and is
frozen from then on, as in both papers' code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.artefact import output_folder, read_artefact, sha256_file, write_json
from mvlm_core.data.reading import ROWS_FILE
from mvlm_core.scenes.draw import TAG_WORDS
from mvlm_core.scenes.rows_folder import TAGS_FILE, SceneCounts, write_scenes
from mvlm_core.train.config import TrainConfig, scenes_config
from mvlm_core.train.model_config import ModelConfig
from mvlm_core.train.stages import LearningRates, StageConfig

# The demo's pictures made smaller: 8 x 8 patches, so that a step costs less than half.
SIZE_PX, GRID_SIDE = 64, 8
SCALES = (1, 4, 16, 64)
FINEST = SCALES[-1]
# What one token answers, and what more of them answer better.
FLAT_KINDS = ("time_of_day", "largest", "count_large")
STEEP_KINDS = ("colour_of", "where", "smallest", "number", "letter")
KINDS = (*FLAT_KINDS, *STEEP_KINDS)
# Drawn more often where not all questions are taken: what names an object takes longest to learn.
_TASK_WEIGHTS = {
    "time_of_day": 0.25, "largest": 0.5, "count_large": 0.5, "colour_of": 2.0, "where": 1.0, "smallest": 2.0,
    "number": 2.0, "letter": 1.0,
}  # fmt: skip
_TAG_WEIGHTS = {"shape": 4.0, "character": 3.0}
# What of a model's configuration says which connector it is.
CONNECTOR = {"connector", "connector_positions", "num_queries", "num_heads", "value_mlp", "query_start"}
# Two layers learn the look-ups nearly as well as the demo's three, in two thirds of the time.
_SMALLER = ("text", {"num_hidden_layers": 2})
# Of a question with its answer, and of the answer with what ends it: means over the rows (a test counts them).
QUESTION_TOKENS, ANSWER_TOKENS = 12.5, 2.5
# The pictures are the same for every seed, so that differences between cells are paired by picture.
_WORLD_SEED = 0


_PICTURES = SceneCounts(train=6000, val=300, test=300)


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        patch_steps, base_steps: the two stages of a base.
        exchange_steps: of a base with another connector, behind the first.
        questions: of a picture in a step of a base.
        cell_steps, cell_rate, cell_questions: of a cell; the rate in parts of the demo's learning rates.
        overrides: of the model, for a rehearsal.
    """

    pictures: SceneCounts = _PICTURES
    patch_steps: int = 500
    base_steps: int = 700
    exchange_steps: int = 150
    cell_steps: int = 80
    cell_rate: float = 0.5
    pictures_a_step: int = 16
    questions: int = 8
    cell_questions: int = 5
    overrides: tuple[tuple[str, dict[str, Any]], ...] = ()


def draw_world(folder: Path, size: Size) -> Path:
    """Draw the pictures, keep the questions of `KINDS`, and return the rows folder. What is there already stays."""
    rows = folder / "rows"
    if not rows.is_dir():
        with output_folder(rows) as drawn:
            write_scenes(drawn, size.pictures, _WORLD_SEED, lambda count: None)
            _keep_kinds(drawn)
    return rows


def _keep_kinds(drawn: Path) -> None:
    file = drawn / ROWS_FILE
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if json.loads(line)["task"] in KINDS]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    _coarsen_tags(drawn / TAGS_FILE)
    facts = read_artefact(drawn, "rows")
    facts["rows"] = {kind: count for kind, count in facts["rows"].items() if kind in KINDS}
    facts["grid_side"] = GRID_SIDE
    facts["files"] = {name: sha256_file(drawn / name) for name in (ROWS_FILE, TAGS_FILE)}
    write_json(drawn / "rows.json", facts)


def _coarsen_tags(file: Path) -> None:
    stored: dict[str, Any] = dict(np.load(file, allow_pickle=False))
    for group in TAG_WORDS:
        stored[group] = coarser(stored[group], GRID_SIDE)
    np.savez_compressed(file, **stored)


def coarser(tags: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The commonest word of each larger patch, 0 where none is shown: (n, G, G) -> (n, side, side)."""
    fine = int(np.lcm(tags.shape[1], side))
    spread = np.kron(tags, np.ones((1, fine // tags.shape[1], fine // tags.shape[1]), np.uint8))  # (n, fine, fine)
    cells = spread.reshape(len(tags), side, fine // side, side, fine // side)
    words = range(1, int(tags.max()) + 1)
    shown = np.stack([np.zeros((len(tags), side, side), int), *((cells == word).sum(axis=(2, 4)) for word in words)])
    return shown.argmax(axis=0).astype(np.uint8)


def base_config(rows: Path, seed: int, size: Size) -> TrainConfig:
    """The demo's model and patch stage, then answers at the finest scale with the tower frozen."""
    config = _config("pool", rows, seed, size)
    patches = config.stages[0].model_copy(update={"steps": size.patch_steps, "pictures": size.pictures_a_step})
    return config.model_copy(update={"stages": (patches, _answers(size.base_steps, size))})


def exchanged_config(family: str, base: Path, rows: Path, seed: int, size: Size) -> TrainConfig:
    """MQT's first stage: another connector before the base's tower and language model, at all its tokens.

    A `query` connector starts as the pyramid: random queries have no ladder within so few steps
    (reference/feasibility.md, part 2).
    """
    config = _config(family, rows, seed, size)
    told = config.model.model_dump(include=CONNECTOR)
    stages = (_answers(size.exchange_steps, size),)
    return config.model_copy(update={"model": ModelConfig(start=base, **told), "stages": stages})


def _config(family: str, rows: Path, seed: int, size: Size) -> TrainConfig:
    config = scenes_config(family, rows=rows, seed=seed)
    return config.model_copy(update={"model": model_of(config.model, size), "scales": SCALES})


def model_of(demo: ModelConfig, size: Size) -> ModelConfig:
    """The demo's model of any family, on the smaller pictures."""
    image = demo.image.model_copy(update={"size_px": SIZE_PX})
    model = demo.model_copy(update={"image": image, "grid_side": GRID_SIDE, "num_queries": FINEST})
    for part, told in (_SMALLER, *size.overrides):
        model = model.model_copy(update={part: {**getattr(model, part), **told}})
    return model


def _answers(steps: int, size: Size) -> StageConfig:
    return answer_stage("answers", steps, (FINEST,), pictures=size.pictures_a_step, questions=size.questions)


def answer_stage(
    name: str, steps: int, show: tuple[Any, ...], *, pictures: int, questions: int,
    frozen: tuple[Any, ...] = ("vision_tower",), rate: float = 1.0,
) -> StageConfig:  # fmt: skip
    """A stage of answers; `rate` multiplies the demo's learning rates."""
    return StageConfig(
        name=name, steps=steps, show=show, pictures=pictures, questions=questions,
        task_weights=_TASK_WEIGHTS, frozen=frozen, lr=rate * 2e-3, matrix_lr=rate * 1e-2,
        lr_of=LearningRates(vision_tower=rate * 6e-4), tag_weights=_TAG_WEIGHTS, patch_loss_weight=0.1,
    )  # fmt: skip
