"""The parts of a question, each measured by itself: encoding of views, connectors, reading, writing, and choosing.

Letters: K scales of the bundle, ascending; m visual tokens, D width of the language model. In a round every part is
measured once, in an order that changes, between the whole questions that the composed cost is then held against.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from export.runtime import Runtime, View
from export.runtime.answer import Clock, Stop
from export.runtime.backends.onnx import run_session
from export.runtime.decode.conversation import Conversation, Given
from export.runtime.decode.steps import alone
from export.runtime.request import Request
from export.runtime.routing.parts import Parts, Work

# Between the fewest visual tokens and the most, reading is measured at so many numbers of them.
_MOST_POINTS = 8


@dataclass
class PartSamples:
    """Milliseconds as they were measured: by part and point, one for each round. A part without points has one, 0."""

    rounds: dict[str, dict[Any, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def add(self, part: str, at: Any, ms: float) -> None:
        self.rounds[part][at].append(ms)

    def to_json(self, of: Callable[[list[float]], Any]) -> dict[str, Any]:
        """As `Parts.from_json` reads it; `of` says what is kept of the rounds."""
        told: dict[str, Any] = {part: {str(at): of(ms) for at, ms in at.items()} for part, at in self.rounds.items()}
        told |= {part: told[part]["0"] for part in ("image", "router") if part in told}
        return told | {"features": told.get("features", {})}

    def parts(self, of: Callable[[list[float]], float]) -> Parts:
        """The parts, each as `of` makes them of its rounds."""
        return Parts.from_json(self.to_json(of), float)


class PartsMeter:
    """Measures the parts on an open bundle. The language model reads noise in place of visual tokens: how long that
    takes depends on their number alone."""

    def __init__(self, runtime: Runtime, request: Request, batches: Sequence[int] = (1,)) -> None:
        """`request` is the question, asked at the finest scale; `batches` are numbers of views to encode at once."""
        self._runtime, self._request, self._batches = runtime, request, batches
        self._points = reading_points(runtime.manifest.scales)
        self._noise = np.random.default_rng(0).standard_normal(
            (max(self._points), runtime.manifest.embedding.shape[1]), np.float32
        )
        self._noise *= float(np.std(runtime.table.rows(runtime.prompt.question_ids(request.question)))) + 1e-6

    def work(self, m: int) -> Work:
        """A question at a scale about a picture that nobody has looked at."""
        reader = self._runtime.reader
        read = reader.positions(self._request.question, m, 0) - reader.lead.used
        return Work(views=1, connected=1, tokens=m, read=read, behind=reader.lead.used)

    def round(self, view: View, samples: PartSamples, order: np.random.Generator) -> None:
        """Measure every part once, of a new `view` of a picture."""
        samples.add("image", 0, view.timings["image_ms"])
        for size in self._batches:
            samples.add("vision", size, view.timings["vision_ms"] if size == 1 else self._encode(size))
        if self._runtime.router is not None:
            self._choose(view, samples)
        for m in order.permutation(self._runtime.manifest.scales).tolist():
            samples.add("connector", m, _timed(partial(self._runtime.visual_tokens, view.values, m)))
        for m in order.permutation(self._points).tolist():
            self._read(m, samples)

    def _encode(self, size: int) -> float:
        graph, side = self._runtime.manifest.vision, self._runtime.manifest.image.size_px
        feeds = {graph.inputs["pixel_values"]: np.zeros((size, 3, side, side), np.float32)}
        return _timed(lambda: run_session(self._runtime.encoder.vision, list(graph.outputs.values()), feeds))

    def _choose(self, view: View, samples: PartSamples) -> None:
        samples.add("features", "picture", _timed(lambda: view.sight))
        clock = Clock()
        self._runtime.choose(view, Request(self._request.question, "auto", max_new_tokens=1), clock)
        samples.add("features", "question", clock.timings["features_ms"])
        samples.add("router", 0, clock.timings["router_ms"])

    def _read(self, m: int, samples: PartSamples) -> None:
        """A prompt and an answer at m visual tokens, and the prompt once more behind what then stands in the cache."""
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


def reading_points(scales: Sequence[int]) -> tuple[int, ...]:
    """The numbers of visual tokens at which reading is measured: the scales, or some of many."""
    if len(scales) <= _MOST_POINTS:
        return tuple(scales)
    wanted = np.geomspace(min(scales), max(scales), _MOST_POINTS)
    return tuple(sorted({min(scales, key=lambda m: abs(m - w)) for w in wanted.tolist()}))


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)
