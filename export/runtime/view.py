"""A picture that has been looked at: every scale, and any number of questions, follow from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from export.runtime.decode.batch import answer_many
from export.runtime.decode.conversation import Shelf
from export.runtime.routing.router import Choice

from .answer import Answer, Clock, Stream, pieces_in_thread, read_in_thread
from .answerer import Answerer
from .clips import ClipSource, Encoded
from .image import Order, Picture
from .looked import Looked
from .request import Options, Request, Scale, request_of, require_several
from .views.cutting import OVERVIEW
from .views.cutting import View as Tile
from .views.seen import Seen

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
        request = self._request(question, scale, options)
        return self.runtime.stream(self, request, Clock(request.deadline_ms))

    def ask_many(self, questions: Sequence[str], scale: Scale = "auto", **options: Unpack[Options]) -> list[Answer]:
        """Several questions, in their order: as one by one. All are checked before the first is answered.

        `decode.batch.answer_many` says when they are written at once.
        """
        require_several(questions, "questions")
        requests = [self._request(question, scale, options) for question in questions]
        return answer_many(self.runtime, [self] * len(requests), requests)

    def choose(self, question: str, **options: Unpack[Options]) -> Choice:
        """The scale that `ask` would answer at, without answering."""
        request = self._request(question, "auto", options)
        return self.runtime.choose(self, request, Clock(request.deadline_ms))

    def choose_at(self, question: str, prices: Sequence[float | None]) -> Iterator[Choice]:
        """`choose` at one price after another; what does not depend on the price is computed once."""
        requests = [self._request(question, "auto", {"price": price}) for price in prices]
        return self.runtime.choose_each(self, requests)

    def _request(self, question: str, scale: Scale, options: Options) -> Request:
        request = request_of(question, scale, options)
        self.runtime.require_answerable(request, self)
        return request

    async def aask(self, question: str, scale: Scale = "auto", **options: Unpack[Options]) -> Answer:
        """`ask` in a thread. Cancelled, it stops within a token."""
        return await read_in_thread(self.stream(question, scale, **options))

    async def astream(self, question: str, scale: Scale = "auto", **options: Unpack[Options]) -> AsyncIterator[str]:
        """`stream`, its steps in a thread. Left early, it stops within a token."""
        async for piece in pieces_in_thread(self.stream(question, scale, **options)):
            yield piece


def look(runtime: Answerer, picture: Picture, order: Order, most_pixels: int | None = None) -> View:
    """Encode a picture's overview, once; tiles are encoded when a scale needs them."""
    clock, many = Clock(), runtime.manifest.many_views
    with clock.stage("image"):
        source = runtime.source(picture, order, most_pixels)
        pixels = source.overview()[None]  # (1, 3, size_px, size_px)
    with clock.stage("vision_overview" if many else "vision"):
        values, words = runtime.encoder.look(pixels)

    def encode(views: Sequence[Tile], clock: Clock) -> Array:
        with clock.stage("image_tiles"):
            pixels = source.pixels(views)
        with clock.stage("vision_tiles"):
            return runtime.encoder.values(pixels)

    seen = Seen(values, source.size, encode, source.name) if many else Seen(values, source.size)
    return _view(runtime, seen, words[0], clock, None)


def look_at_clip(runtime: Answerer, source: ClipSource, encoded: Encoded) -> View:
    """Encode a clip's middle frame, once; other frames are encoded when a scale needs them.

    `encoded` is what is known of a camera's frames, and is added to.
    """

    def frames(views: Sequence[Tile], clock: Clock, image: str, vision: str) -> list[tuple[Array, Array]]:
        """Values and words of some frames; those that are new go through the tower together."""
        held = {view: source.frame(view) for view in views}
        known = {view: encoded[frame] for view, frame in held.items() if frame is not None and frame in encoded}
        if new := [view for view in views if view not in known]:
            with clock.stage(image):
                pixels = source.pixels(new)
            with clock.stage(vision):
                values, words = runtime.encoder.look(pixels)
            known |= {view: (values[n].copy(), words[n].copy()) for n, view in enumerate(new)}
        encoded.update({frame: known[view] for view, frame in held.items() if frame is not None})
        return [known[view] for view in views]

    def encode(views: Sequence[Tile], clock: Clock) -> Array:
        return np.stack([values for values, _ in frames(views, clock, "image_tiles", "vision_tiles")])

    clock = Clock()
    ((values, words),) = frames([OVERVIEW], clock, "image", "vision_overview")
    return _view(
        runtime, Seen(values[None], source.size, encode, source.name, more=str(source.count)), words, clock, source
    )


def _view(runtime: Answerer, seen: Seen, words: Array, clock: Clock, clip: ClipSource | None) -> View:
    at = cache(lambda scale: runtime.pictured(seen, scale, clip))
    see = partial(runtime.see, size=seen.size) if runtime.router else None
    return View(seen, words, at, Shelf(runtime.reader, at), clock.timings, runtime, see=see)
