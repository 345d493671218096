"""How long the demo takes on this machine: what it took where it was measured, times how much slower this one draws."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from .demo_size import LONG, SHORT, Size

# Seconds of each verb of a short demo on two cores of an AMD EPYC, and of drawing one picture there.
MEASURED = {"data": 24.0, "train": 293.0, "label": 87.0, "fit-router": 15.0, "export": 17.0, "report": 23.0, "run": 1.0}
DRAWN_S, _MEASURED_CORES = 0.0023, 2
# So many pictures of the long one are labelled that a router which reads pictures is fitted too.
LONG_FIT_S = 570.0
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
    return here / DRAWN_S * _MEASURED_CORES / min(_MEASURED_CORES, os.cpu_count() or 1)


def expected(size: Size) -> dict[str, float]:
    """Seconds of each verb of a demo of this size, where the short one was measured."""
    more = {
        "data": _drawn(size) / _drawn(SHORT),
        "train": sum(size.steps) / sum(SHORT.steps),
        "label": _labelled(size) / _labelled(SHORT),
    }
    found = {verb: seconds * more.get(verb, 1.0) for verb, seconds in MEASURED.items()}
    return found | ({"fit-router": LONG_FIT_S} if size == LONG else {})


def _drawn(size: Size) -> int:
    return size.pictures.train + _labelled(size)


def _labelled(size: Size) -> int:
    return size.pictures.val + size.pictures.test


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
