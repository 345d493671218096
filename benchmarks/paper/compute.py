"""What a step of training costs, so that cells of equal compute can be told from cells of equal steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.flops import training_flops
from benchmarks.paper.world import (
    ANSWER_TOKENS,
    CONNECTOR,
    GRID_SIDE,
    QUESTION_TOKENS,
    SIZE_PX,
    Size,
    answer_stage,
    model_of,
)
from mvlm_core.backbones.load import text_config, vision_config
from mvlm_core.modeling.model import MvlmConfig
from mvlm_core.train.config import scenes_config
from mvlm_core.train.scale_sampling import draw_steps

# Close to the tokenizer's own, which is made of the rows; the head is hardly of the cost.
_VOCABULARY = 435
_DRAWN = 1000


@lru_cache
def family_config(family: str) -> MvlmConfig:
    """The benchmark's model of a family, as it is built from nothing."""
    told = model_of(scenes_config(family, rows=Path(), seed=0).model, Size())
    return MvlmConfig(
        vision_config=vision_config(told.vision or {}),
        text_config=text_config(told.text or {}, vocab_size=_VOCABULARY),
        grid_side=GRID_SIDE, **told.model_dump(include=CONNECTOR),
    )  # fmt: skip


def step_flops(family: str, show: Sequence[Any], questions: int, *, frozen_tower: bool = True) -> float:
    """Of one picture in a step, on average over what the policy `show` draws."""
    stage = answer_stage("drawn", _DRAWN, tuple(show), pictures=1, questions=questions)
    steps = draw_steps(stage.show or (), _DRAWN, np.random.default_rng(0))
    return float(np.mean([_flops(family, scales, questions, frozen_tower) for scales in steps]))


@lru_cache
def _flops(family: str, scales: tuple[int, ...], questions: int, frozen_tower: bool) -> float:
    return training_flops(
        family_config(family), SIZE_PX, scales, text_tokens=round(questions * QUESTION_TOKENS),
        answer_tokens=round(questions * ANSWER_TOKENS), frozen_tower=frozen_tower,
    )  # fmt: skip
