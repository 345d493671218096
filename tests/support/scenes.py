"""Drawn pictures with the questions that they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def drawn_scenes(draw: Callable[..., Any], ask: Callable[..., Any], count: int = 150) -> list[tuple[Any, Any]]:
    """Scenes of seeds from 0 up, each with all that is asked of it, in the wordings of training."""
    scenes = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        scene = draw(random)
        scenes.append((scene, ask(scene, random, held_out=False)))
    return scenes
