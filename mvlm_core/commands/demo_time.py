"""How long the demo takes on this machine: what it took where it was measured, times how much slower this one draws."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

# Seconds of each verb of a demo on two cores of an AMD EPYC (benchmarks/results/demo_pool_seed0.json), and how many
# pictures were drawn in the first of them.
MEASURED = {"data": 25.0, "train": 321.0, "label": 70.0, "fit-router": 12.0, "export": 20.0, "report": 10.0, "run": 1.0}
_MEASURED_CORES, _MEASURED_PICTURES = 2, 17800
_PROBE_PICTURES = 60
# The first guess counts as much as this many seconds of a demo that is under way.
_TRUST_S = 60.0


def slowness() -> float:
    """How many times slower this machine is than the measured one, from drawing a few pictures: a second or less."""
    import numpy as np

    from mvlm_core.scenes.draw import ask, draw_scene

    def draw(number: int) -> float:
        start = time.perf_counter()
        random = np.random.default_rng(number)
        scene = draw_scene(random)
        ask(scene, random, held_out=False)
        scene.image.save(io.BytesIO(), "png", compress_level=1)
        return time.perf_counter() - start

    draw(0)  # what is loaded and kept the first time
    here = sum(draw(number) for number in range(_PROBE_PICTURES)) / _PROBE_PICTURES
    there = MEASURED["data"] * _MEASURED_CORES / _MEASURED_PICTURES
    return here / there * _MEASURED_CORES / min(_MEASURED_CORES, os.cpu_count() or 1)


@dataclass
class Clock:
    """What is left of a demo: the first guess, set right by what its verbs took."""

    slowness: float
    measured: Mapping[str, float] = field(default_factory=lambda: MEASURED)
    taken: dict[str, float] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds of the verbs that were not taken yet."""
        known = sum(self.measured.get(verb, 0.0) for verb in self.taken)
        pace = (self.slowness * _TRUST_S + sum(self.taken.values())) / (_TRUST_S + known)
        return pace * sum(seconds for verb, seconds in self.measured.items() if verb not in self.taken)


def spoken(seconds: float) -> str:
    """As a person says it: `about 8 minutes`, `less than a minute`."""
    minutes = round(seconds / 60)
    if minutes == 0:
        return "less than a minute"
    return "about a minute" if minutes == 1 else f"about {minutes} minutes"
