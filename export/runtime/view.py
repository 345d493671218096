"""A picture that has been looked at: every scale, and any number of questions, follow from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from export.runtime.backends.onnx import run_session
from export.runtime.decode.batch import answer_many
from export.runtime.decode.conversation import Shelf
from export.runtime.routing.router import Choice

from .answer import Answer, Clock, Stream, pieces_in_thread, read_in_thread
from .answerer import Answerer
from .image import Order, Picture, preprocess
from .looked import Looked
from .request import Options, Scale, request_of, require_several

Array = NDArray[np.float32]


@dataclass(frozen=True)
class View(Looked):
    """A picture that has been looked at, with who answers questions about it."""

    runtime: Answerer = field(repr=False)

    def ask(self, question: str, scale: Scale = "auto", **options: Unpack[Options]) -> Answer:
        """Answer at the scale that the router chooses, or at the one that is named.

        Raises `MvlmError`: an empty question, one that does not fit the decoder, a scale that the bundle has not, an
        option that makes no sense.
        """
        return self.stream(question, scale, **options).read()

    def stream(self, question: str, scale: Scale = "auto", **options: Unpack[Options]) -> Stream:
        """The answer in pieces as they are generated; what cannot be answered is refused here, before any work."""
        request = request_of(question, scale, options)
        self.runtime.require_answerable(request)
        return self.runtime.stream(self, request, Clock(request.deadline_ms))

    def ask_many(self, questions: Sequence[str], scale: Scale = "auto", **options: Unpack[Options]) -> list[Answer]:
        """Several questions, in their order: as one by one. All are checked before the first is answered.

        `decode.batch.answer_many` says when they are written at once.
        """
        require_several(questions, "questions")
        requests = [request_of(question, scale, options) for question in questions]
        for request in requests:
            self.runtime.require_answerable(request)
        return answer_many(self.runtime, [self] * len(requests), requests)

    def choose(self, question: str, **options: Unpack[Options]) -> Choice:
        """The scale that `ask` would answer at, without answering."""
        request = request_of(question, "auto", options)
        self.runtime.require_answerable(request)
        return self.runtime.choose(self, request, Clock(request.deadline_ms))

    def choose_at(self, question: str, prices: Sequence[float | None]) -> Iterator[Choice]:
        """`choose` at one price after another; what does not depend on the price is computed once."""
        requests = [request_of(question, "auto", {"price": price}) for price in prices]
        for request in requests:
            self.runtime.require_answerable(request)
        return self.runtime.choose_each(self, requests)

    async def aask(self, question: str, scale: Scale = "auto", **options: Unpack[Options]) -> Answer:
        """`ask` in a thread. Cancelled, it stops within a token."""
        return await read_in_thread(self.stream(question, scale, **options))

    async def astream(self, question: str, scale: Scale = "auto", **options: Unpack[Options]) -> AsyncIterator[str]:
        """`stream`, its steps in a thread. Left early, it stops within a token."""
        async for piece in pieces_in_thread(self.stream(question, scale, **options)):
            yield piece


def look(runtime: Answerer, picture: Picture, order: Order) -> View:
    """Encode a picture once."""
    clock = Clock()
    graph = runtime.manifest.vision
    with clock.stage("image"):
        pixels = preprocess(picture, runtime.manifest.image, order)[None]  # (1, 3, size_px, size_px)
    with clock.stage("vision"):
        outputs = [graph.outputs["values"], graph.outputs["words"]]
        values, words = run_session(runtime.vision, outputs, {graph.inputs["pixel_values"]: pixels})

    def tokens(m: int) -> Array:
        return runtime.visual_tokens(values, m)[0]  # (m, D)

    shelf, see = Shelf(runtime.reader, tokens), runtime.see if runtime.router else None
    return View(values, words[0], shelf, clock.timings, runtime, see=see)
