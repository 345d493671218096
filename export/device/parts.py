"""The parts of a question, each measured by itself: encoding of views, connectors, reading, writing, and choosing.

Letters: K scales of the bundle, ascending; m positions of a picture, D width of the language model. In a round every
part is measured once, in an order that changes, between the whole questions that composed costs are then held against.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from export.runtime import Runtime, View
from export.runtime.answer import Clock, Stop
from export.runtime.decode.conversation import Conversation, Given
from export.runtime.decode.steps import alone
from export.runtime.image import Picture
from export.runtime.request import Request
from export.runtime.routing.parts import Parts, Work, in_batches
from export.runtime.views import OVERVIEW
from export.runtime.views.cutting import View as Tile

# Between the fewest positions of a picture and the most, reading is measured at so many numbers of them.
_MOST_POINTS = 8
# Tiles that are encoded at once where the picture that is measured has none.
_SOME_TILES = 4


@dataclass
class PartSamples:
    """Milliseconds as they were measured: by part and point, one for each round. A part without points has one, 0.

    `views_at_once` is how many views the tower takes in one run.
    """

    views_at_once: int = 1
    rounds: dict[str, dict[Any, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def add(self, part: str, at: Any, ms: float) -> None:
        self.rounds[part][at].append(ms)

    def to_json(self, of: Callable[[list[float]], Any]) -> dict[str, Any]:
        """As `Parts.from_json` reads it; `of` says what is kept of the rounds."""
        told: dict[str, Any] = {part: {str(at): of(ms) for at, ms in at.items()} for part, at in self.rounds.items()}
        told |= {part: told[part]["0"] for part in ("image", "router") if part in told}
        return told | {"features": told.get("features", {}), "views_at_once": self.views_at_once}

    def parts(self, of: Callable[[list[float]], float]) -> Parts:
        """The parts, each as `of` makes them of its rounds."""
        return Parts.from_json(self.to_json(of), float)


class PartsMeter:
    """Measures the parts on an open bundle. The language model reads noise in place of a picture: how long that takes
    depends on the number of positions alone."""

    def __init__(self, runtime: Runtime, request: Request, picture: Picture, view: View) -> None:
        """`request` is the question, asked at the finest scale about a picture; `view` is a look at it."""
        self._runtime, self._request, self._picture = runtime, request, picture
        scales = runtime.manifest.scales
        self._laid = {scale: view.at(scale).laid for scale in scales}
        self._tiles = {laid.views - 1: laid.shown.views for laid in self._laid.values() if laid.views > 1}
        self.views_at_once = runtime.encoder.views_at_once
        self._batches = _batches(self._tiles, self.views_at_once, tiled=any(isinstance(m, str) for m in scales))
        lengths = {*map(len, self._laid.values()), *map(runtime.layout.least, scales)}
        self._points = reading_points(sorted(lengths))
        self._noise = np.random.default_rng(0).standard_normal(
            (max(self._points), runtime.manifest.embedding.shape[1]), np.float32
        )
        self._noise *= float(np.std(runtime.table.rows(runtime.prompt.question_ids(request.question)))) + 1e-6

    @property
    def around(self) -> int:
        """The positions that are read of a question beside the picture's."""
        reader = self._runtime.reader
        return reader.positions(self._request.question, 0, 0) - reader.lead.used

    def work(self, scale: Any) -> Work:
        """A question at a scale about the picture, which nobody has looked at."""
        laid, behind = self._laid[scale], self._runtime.reader.lead.used
        return Work(1, laid.views, laid.shown.tokens, self.around + len(laid), behind, tiles=laid.views - 1)

    def round(self, view: View, samples: PartSamples, order: np.random.Generator) -> None:
        """Measure every part once, of a new `view` of a picture."""
        samples.add("image", 0, view.timings["image_ms"])
        overview_ms = view.timings["vision_overview_ms" if self._runtime.manifest.many_views else "vision_ms"]
        for size in self._batches:
            samples.add("vision", size, overview_ms if size == 1 else self._encode(size))
        for count, views in self._tiles.items():
            samples.add("image_tiles", count, self._cut([tile for tile in views if tile != OVERVIEW]))
        if self._runtime.router is not None:
            self._choose(view, samples)
        for m in order.permutation(list(self._runtime.manifest.connectors)).tolist():
            samples.add("connector", m, _timed(partial(self._runtime.visual_tokens, view.values, m)))
        for m in order.permutation(self._points).tolist():
            self._read(m, samples)

    def _encode(self, size: int) -> float:
        side = self._runtime.manifest.size_px
        pixels = np.zeros((size, 3, side, side), np.float32)
        return _timed(lambda: self._runtime.encoder.values(pixels))

    def _cut(self, tiles: list[Tile]) -> float:
        source = self._runtime.source(self._picture)
        source.overview()  # which reads the picture
        return _timed(lambda: source.pixels(tiles))

    def _choose(self, view: View, samples: PartSamples) -> None:
        samples.add("features", "picture", _timed(lambda: view.sight))
        clock = Clock()
        self._runtime.choose(view, Request(self._request.question, "auto", max_new_tokens=1), clock)
        samples.add("features", "question", clock.timings["features_ms"])
        samples.add("router", 0, clock.timings["router_ms"])

    def _read(self, m: int, samples: PartSamples) -> None:
        """A prompt and an answer at m positions of a picture, and the prompt again behind what is then in the cache."""
        runtime, request, clock = self._runtime, self._request, Clock()
        conversation = Conversation(runtime.reader, lambda m: Given(self._noise[:m]))
        room, reader = runtime.room(request), runtime.reader
        logits = conversation.ask(request.question, m, room, clock)
        read = conversation.used - reader.lead.used
        samples.add("prefill", read, clock.timings["prefill_ms"])
        behind = conversation.used
        for _ in alone(runtime.write(conversation, logits, request, clock, Stop())):
            pass
        samples.add("token", behind, clock.timings["decode_ms"] / (request.max_new_tokens - 1))
        if m == max(self._points) and reader.prompt.picture_first:
            again = Clock()
            conversation.ask(request.question, m, room, again)
            samples.add("prefill", read - m, again.timings["prefill_ms"])


def reading_points(lengths: Sequence[int]) -> tuple[int, ...]:
    """The numbers of positions at which reading is measured: those of the scales, or some of many."""
    if len(lengths) <= _MOST_POINTS:
        return tuple(lengths)
    wanted = np.geomspace(min(lengths), max(lengths), _MOST_POINTS)
    return tuple(sorted({min(lengths, key=lambda m: abs(m - w)) for w in wanted.tolist()}))


def _batches(tiles: Iterable[int], at_once: int, *, tiled: bool) -> tuple[int, ...]:
    """The numbers of views that the tower is measured at: one, and those that so many tiles are encoded in."""
    if not tiled:
        return (1,)
    return tuple(sorted({1}.union(*(in_batches(count, at_once) for count in tiles or [min(_SOME_TILES, at_once)]))))


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)
