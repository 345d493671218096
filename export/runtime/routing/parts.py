"""What a question takes on this device, composed from its parts: for any scale, picture, and state of the caches.

`mvlm bench` measures the parts. What it did not measure lies on the line between the two points beside it, and what
lies beyond them on the last line's continuation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Points = tuple[tuple[int, float], ...]  # (how much, milliseconds), ascending in both


@dataclass(frozen=True)
class Work:
    """What is left to be done for a question.

    Attributes:
        views: to be encoded by themselves: 1 while nobody has looked at the picture, for its overview.
        connected: views whose tokens are to be made.
        tokens: of each of these.
        read: positions that the language model has to read; none where only the tokens of the answer are counted.
        behind: positions that stand in its cache already.
        tiles: views beside the overview that are to be encoded, together.
    """

    views: int
    connected: int
    tokens: int
    read: int
    behind: int = 0
    tiles: int = 0


@dataclass(frozen=True)
class Parts:
    """Milliseconds of each part.

    Attributes:
        image: preparing the pixels of the overview.
        vision: encoding, by the number of views that are encoded at once.
        connector: making the tokens of a view, by their number.
        prefill: by the number of positions that are read at once.
        token: one more token of an answer, by the number of positions before it.
        picture, question: what a router looks at, the first once for a picture.
        router: asking it.
        image_tiles: preparing the pixels of tiles, by their number; where nobody measured it, as for overviews.
        views_at_once: how many views the tower takes in one run.
    """

    image: float
    vision: Points
    connector: Points
    prefill: Points
    token: Points
    picture: float = 0.0
    question: float = 0.0
    router: float = 0.0
    image_tiles: Points = ()
    views_at_once: int = 1

    def ms(self, work: Work, answer_tokens: int) -> float:
        """What is left, and an answer of so many tokens, the first of which comes out of the reading."""
        return _ms(self, work, answer_tokens)

    def looking_ms(self, views: int) -> float:
        """So many views prepared and encoded, each by itself."""
        return views * (self.image + self.vision[0][1])

    def tiles_ms(self, tiles: int) -> float:
        """So many tiles cut and encoded, in the batches that the encoder makes of them."""
        if not tiles:
            return 0.0
        cut = between(self.image_tiles, tiles) if self.image_tiles else tiles * self.image
        return cut + sum(between(self.vision, size) for size in in_batches(tiles, self.views_at_once))

    def reading_ms(self, work: Work) -> float:
        """Until the first token, of a picture whose views are encoded."""
        made = work.connected * between(self.connector, work.tokens) if work.connected else 0.0
        return made + (between(self.prefill, work.read) if work.read else 0.0)

    def writing_ms(self, work: Work, answer_tokens: int) -> float:
        """The further tokens of an answer."""
        return (answer_tokens - 1) * between(self.token, work.behind + work.read)

    def choosing_ms(self, *, picture_seen: bool) -> float:
        """What choosing takes: less for a picture that the router has looked at."""
        return (0.0 if picture_seen else self.picture) + self.question + self.router

    @classmethod
    def from_json(cls, value: Mapping[str, Any], of: Callable[[Any], float]) -> Parts:
        """`of` takes the milliseconds out of what was kept of a measurement: its median, or what most take."""
        vision, connector, prefill, token = (
            _points(value[name], of) for name in ("vision", "connector", "prefill", "token")
        )
        if vision[0][0] != 1:
            raise ValueError("nobody measured the encoding of one view")
        features = value["features"]
        picture, question = (of(features[name]) if features else 0.0 for name in ("picture", "question"))
        router = of(value["router"]) if value.get("router") else 0.0
        tiles = _points(value["image_tiles"], of) if value.get("image_tiles") else ()
        at_once = int(value.get("views_at_once", 1))  # of before there were tiles
        if at_once < 1:
            raise ValueError(f"a tower that takes {at_once} views")
        return cls(
            of(value["image"]), vision, connector, prefill, token, picture, question, router, tiles, at_once
        )  # fmt: skip


def in_batches(views: int, at_once: int) -> tuple[int, ...]:
    """How many views each run of the tower takes of so many: as many as it can, and then the rest."""
    rest = (views % at_once,) if views % at_once else ()
    return (at_once,) * (views // at_once) + rest


def between(points: Points, at: float) -> float:
    """The value at a place: on the line between the points beside it, never below the first, never falling."""
    if len(points) == 1 or at <= points[0][0]:
        return points[0][1]
    right = next((i for i, (place, _) in enumerate(points) if place >= at), len(points) - 1)
    (x, low), (y, high) = points[right - 1], points[right]
    return low + (high - low) * (at - x) / (y - x)


def _points(value: Mapping[str, Any], of: Callable[[Any], float]) -> Points:
    """Measured points in order. More is never cheaper: a point below the one before it was noise."""
    points: list[tuple[int, float]] = []
    for place, ms in sorted((int(place), of(ms)) for place, ms in value.items()):
        points.append((place, max(ms, points[-1][1]) if points else ms))
    if not points:
        raise ValueError("a part that nobody measured")
    return tuple(points)


@lru_cache(maxsize=4096)  # states of a picture come again
def _ms(parts: Parts, work: Work, answer_tokens: int) -> float:
    looking = parts.looking_ms(work.views) + parts.tiles_ms(work.tiles)
    return looking + parts.reading_ms(work) + parts.writing_ms(work, answer_tokens)
