"""What `auto` and fixed scales take and get right, row by row: by a router's own rules, at the costs of measured parts.

What is right at each scale is known from labels, and what a question takes from the parts that `mvlm bench` measured;
`auto.py` holds the sums against whole questions. Letters: n rows, k scales on offer, coarse to fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from export.runtime.routing.costs import Composed
from export.runtime.routing.parts import Work
from export.runtime.routing.policy import Policy, Seen
from export.runtime.routing.router import Router, Terms
from export.runtime.routing.settled import here

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """How many answers of a way are right, what a question takes in the mean, in ms, and the share of each scale."""

    right: float
    ms: float
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class World:
    """Rows that are answered: what the router sees of them, what is right at each scale (n, k), and whose picture each
    is about (n,). Rows of one picture are asked in their order."""

    router: Router
    composed: Composed
    policy: Policy
    seen: Seen
    right: Floats
    groups: NDArray[np.str_]
    answer_tokens: int
    nested: bool
    may_settle: bool = True  # without, each question is chosen for

    def rows(self, some: NDArray[np.integer]) -> World:
        """Some of the rows."""
        return replace(self, seen=self.seen.take(some), right=self.right[some], groups=self.groups[some])

    def alone(self, way: tuple[str, float]) -> Point:
        """Every question is about a new picture."""
        pictures = np.arange(len(self.right)).astype(str)
        return replace(self, groups=pictures).in_turn(way)

    def in_turn(self, way: tuple[str, float]) -> Point:
        """All questions about a picture, one after another."""
        took, right, taken = np.zeros(len(self.right)), np.zeros(len(self.right)), np.zeros(len(self.router.offered))
        for group in dict.fromkeys(self.groups.tolist()):
            picture = Picture(self)
            for row in np.flatnonzero(self.groups == group).tolist():
                took[row], at = picture.ask(row, way)
                right[row] = self.right[row, at]
                taken[at] += 1
        return Point(float(right.mean()), float(took.mean()), tuple((taken / len(right)).round(4).tolist()))


class Picture:
    """A picture, and what was computed of it so far: as the runtime keeps it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ready: set[int] = set()
        self._seen_by_router = False
        self._looked = False

    def ask(self, row: int, way: tuple[str, float]) -> tuple[float, int]:
        """Milliseconds of a question, and the scale that answered, as an index."""
        kind, value = way
        took = 0.0 if self._looked else self._world.composed.usual.looking_ms(1)
        self._looked = True
        offered = self._world.router.offered
        if kind == "scale":
            at = offered.index(int(value))
            return took + self._read(offered[at]), at
        for at, ms in self._chosen(row, value):
            took += ms + self._read(offered[at])
        return took, at

    def _chosen(self, row: int, price: float) -> list[tuple[int, float]]:
        """The scales that are looked at, as indices, and what choosing each takes."""
        world, costs, overhead = self._world, None, None
        if self._ready or self._seen_by_router:
            now = here(
                world.router.costs, world.router.offered, world.composed.usual, world.composed.work.__getitem__,
                self._left, world.answer_tokens, picture_seen=self._seen_by_router,
            )  # fmt: skip
            costs, overhead = now.costs, now.overhead
        settled = world.router.settled(Terms(price=price), costs, overhead) if world.may_settle else None
        if settled is not None:
            return [(world.router.offered.index(settled.scale), 0.0)]
        choosing = world.composed.usual.choosing_ms(picture_seen=self._seen_by_router)
        self._seen_by_router = True
        policy = world.policy if costs is None else replace(world.policy, cost=costs)
        decided = policy.decide(world.seen.take(np.array([row])), price)
        first, last = int(decided.first[0]), int(decided.last[0])
        return [(first, choosing), (last, 0.0)] if last != first else [(first, choosing)]

    def _left(self, scale: int) -> Work:
        whole = self._world.composed.work[scale]
        kept = min(max(self._ready, default=0), scale) if self._world.nested else scale * (scale in self._ready)
        return replace(whole, views=0, connected=int(kept < scale), read=whole.read - kept, behind=whole.behind + kept)

    def _read(self, scale: int) -> float:
        ms = self._world.composed.usual.ms(self._left(scale), self._world.answer_tokens)
        self._ready.add(scale)
        return ms


def ms_at(points: Sequence[Point], right: float) -> float | None:
    """The fewest milliseconds at which so many are right, mixing two of the ways where that is less; None if never."""
    known = [point.ms for point in points if point.right >= right]
    for low in points:
        for high in points:
            if low.right < right <= high.right:
                share = (right - low.right) / (high.right - low.right)
                known.append((1 - share) * low.ms + share * high.ms)
    return min(known, default=None)


def compare(auto: Sequence[Point], fixed: dict[int, Point]) -> dict[str, object]:
    """The rate of `auto` over those of fixed scales and of all mixes of two, where as many answers are right."""
    finest = fixed[max(fixed)]
    least = min(point.right for point in fixed.values())
    grid = np.linspace(least, max(point.right for point in fixed.values()), 41).tolist()
    mixes = {right: _ratio(ms_at(list(fixed.values()), right), ms_at(auto, right)) for right in grid}
    reached = {right: ratio for right, ratio in mixes.items() if ratio is not None}
    worst, best = min(reached, key=reached.__getitem__), max(reached, key=reached.__getitem__)
    return {
        "over_fixed": {str(m): _ratio(point.ms, ms_at(auto, point.right)) for m, point in fixed.items()},
        "over_mixes": {
            "least": reached[worst], "least_at": round(worst, 4), "most": reached[best], "most_at": round(best, 4),
            "reached": round(len(reached) / len(mixes), 3),
        },
        "over_finest_at_half_a_point_less": _ratio(finest.ms, ms_at(auto, finest.right - 0.005)),
    }  # fmt: skip


def _ratio(other: float | None, own: float | None) -> float | None:
    return None if other is None or own is None else round(other / own, 3)
