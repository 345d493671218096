"""At which scale a question about a picture is answered: what the router sees, what scales cost here, what fits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.decode.conversation import Reader
from export.runtime.decode.sampling import EmbeddingTable, first_margin
from export.runtime.routing.by_picture import in_tokens, only
from export.runtime.routing.costs import CostTable
from export.runtime.routing.parts import Parts, Work
from export.runtime.routing.reading import Read, read_question
from export.runtime.routing.router import Choice, Router, Terms
from export.runtime.routing.settled import Here, here, with_cache

from .answer import Clock
from .errors import MvlmError
from .features import (
    SIZE_FEATURES,
    image_feature_names,
    image_features,
    question_feature_names,
    question_features,
    size_features,
)
from .looked import Looked, Sight
from .manifest import Manifest
from .prompt import Prompt
from .request import Request
from .views.cutting import Size
from .views.scale import ScaleWord

Array = NDArray[np.float32]


class Choosing(ABC):
    """The part of an answerer that chooses."""

    manifest: Manifest
    prompt: Prompt
    table: EmbeddingTable
    reader: Reader
    router: Router | None
    costs: CostTable | None

    @abstractmethod
    def room(self, request: Request) -> int:
        """How many tokens of an answer may have to stand in the cache."""

    def _fits(self, looked: Looked, request: Request, scale: ScaleWord, room: int) -> bool:
        needed = self.reader.positions(request.question, len(looked.at(scale)), room)
        return needed <= self.manifest.max_length

    def features(self, looked: Looked, request: Request) -> dict[str, float]:
        """What the router sees of a question and a picture, by name, less the question's hashed words."""
        assert looked.image_features is not None  # there is a router
        of_size = SIZE_FEATURES if self.manifest.views else ()
        named = zip([*image_feature_names(), *of_size], looked.image_features.tolist(), strict=True)
        asked = zip(question_feature_names(), self._of_question(looked, request.question).tolist(), strict=True)
        return {name: value for name, value in (*named, *asked) if not name.startswith("hash")}

    def _of_question(self, looked: Looked, question: str) -> Array:
        return self._asked(looked, question)[0]

    def _asked(self, looked: Looked, question: str) -> tuple[Array, Read | None]:
        """What the router sees of a question: features (d_question,), and what a reader reads, where it is one."""
        tokens = self.table.rows(self.prompt.question_ids(question))  # (T, D)
        sight = looked.sight
        read = None if sight is None or sight.read is None else Read(sight.read, read_question(tokens))
        return question_features(question, tokens, looked.words), read

    def see(self, words: Array, size: Size) -> Sight:
        """What the router sees of a picture: of its overview (P, D), and with tiles how large it is."""
        assert self.router is not None  # a view asks for it only then
        features = image_features(words)
        if self.manifest.views:
            features = np.concatenate([features, size_features(*size)])
        return Sight(features, self.router.look(words))

    def choose(self, looked: Looked, request: Request, clock: Clock) -> Choice:
        """The router's choice for a question about a picture, or one scale where that is worth more than choosing."""
        assert self.router is not None  # `require_answerable` saw to it
        terms, (costs, overhead) = self._terms(looked, request, clock.left_ms), self._now(looked)
        terms, costs = self._that_fit(looked, request, terms, costs, clock.left_ms)
        settled = self.router.settled(terms, costs, overhead)
        if settled is not None:
            return settled
        with clock.stage("features"):
            features, read = self._asked(looked, request.question)
            image = looked.image_features
        assert image is not None
        with clock.stage("router"):
            return self.router.choose(image, features, terms, read, costs)

    def _now(self, looked: Looked) -> tuple[NDArray[np.float64] | None, float | None]:
        """What each scale costs a question about this picture, and what of it is choosing; None: as usual.

        In milliseconds it is what is left to do; in tokens, of pictures with tiles, what this one has and what of it is
        yet to be encoded.
        """
        assert self.router is not None
        now = self._here(looked)
        if now is not None:
            return now.costs, now.overhead
        return None if self.costs else in_tokens(self.router, looked), None

    def _here(self, looked: Looked) -> Here | None:
        """What each scale costs a question about this picture, where some of it was computed already, or it has tiles
        of its own. None: as usual, or nothing was measured here."""
        if self.costs is None or self.router is None:
            return None
        ready, costs, offered, composed = (
            looked.shelf.ready(),
            self.router.costs,
            self.router.offered,
            self.costs.composed,
        )
        if composed is None:
            nested = self.reader.nested and not self.manifest.many_views
            return Here(with_cache(costs, offered, ready, nested=nested), self.costs.router_ms) if ready else None
        if self.manifest.many_views:
            left = composed.usual.looking_ms(1) + self._left_ms(looked, composed.usual)
            choosing = composed.usual.choosing_ms(picture_seen=looked.seen_by_router)
            return Here(left + choosing, choosing)
        if not ready and not looked.seen_by_router:
            return None
        return here(
            costs, offered, composed.usual, composed.work.__getitem__, lambda scale: self._left(looked, scale),
            self.costs.answer_tokens, picture_seen=looked.seen_by_router,
        )  # fmt: skip

    def _left(self, looked: Looked, scale: Any) -> Work:
        """What is left of a question, as long as the one that was measured, about a picture that was looked at."""
        assert self.costs is not None
        assert self.costs.composed is not None  # who asks saw to it
        picture, kept, around = looked.at(scale), looked.shelf.kept(scale), self.costs.composed.around
        needed = picture.views_behind(kept)
        return Work(
            views=0, connected=len(needed), tokens=picture.laid.shown.tokens, read=around + len(picture) - kept,
            behind=self.reader.lead.used + kept, tiles=len(looked.seen.missing(needed)),
        )  # fmt: skip

    def _left_ms(self, looked: Looked, parts: Parts) -> NDArray[np.float64]:
        """What is left of it at each scale on offer, (k,): neither the look nor choosing."""
        assert self.router is not None
        assert self.costs is not None  # `parts` are of them
        tokens = self.costs.answer_tokens
        return np.array([parts.ms(self._left(looked, scale), tokens) for scale in self.router.offered])

    def _that_fit(
        self, looked: Looked, request: Request, terms: Terms, costs: NDArray[np.float64] | None,
        left_ms: float = math.inf,
    ) -> tuple[Terms, NDArray[np.float64] | None]:  # fmt: skip
        """Terms and costs that leave out the scales at which this picture has more tiles than there is room or time
        for."""
        assert self.router is not None
        if not self.manifest.many_views:
            return terms, costs
        here = np.asarray(self.router.costs if costs is None else costs, np.float64)
        for room in (self.room(request), 1):  # a conversation may have a shorter answer than was asked for
            fits = np.array([self._fits(looked, request, scale, room) for scale in self.router.offered])
            if fits.any():
                break
        offered = self.router.offered
        fitting = [scale for scale, fit in zip(offered, fits, strict=True) if fit] or offered
        in_time = self._in_time(looked, fitting, left_ms)
        if len(in_time) == len(offered):
            return terms, costs
        least = float(self.router.costs.min()) - self.router.overhead
        return only(np.array([scale in in_time for scale in offered]), here, terms, least)

    def choose_each(self, looked: Looked, requests: Sequence[Request]) -> Iterator[Choice]:
        """The router's choices for requests that ask one question about a view, each as `choose` makes it."""
        assert self.router is not None  # `require_answerable` saw to it
        (now, overhead), asked = self._now(looked), None
        for request in requests:
            terms, costs = self._that_fit(looked, request, request.terms, now)
            settled = self.router.settled(terms, costs, overhead)
            if settled is None:
                asked = asked or self._asked(looked, request.question)
                assert looked.image_features is not None
                settled = self.router.choose(looked.image_features, asked[0], terms, asked[1], costs)
            yield settled

    def _terms(self, looked: Looked, request: Request, left_ms: float) -> Terms:
        """The request's terms, with a cap where only some scales can answer in the time that is left."""
        if self.costs is None or math.isinf(left_ms) or self.manifest.many_views:
            return request.terms  # with tiles, `_that_fit` leaves scales out
        in_time = self._in_time(looked, self.manifest.scales, left_ms)
        # Choosing is not in these milliseconds, and one scale for all needs none.
        cap = self.costs.costs[in_time[-1]] - self.costs.router_ms
        return replace(request.terms, cap=cap if request.cap is None else min(cap, request.cap))

    def _in_time(self, looked: Looked, scales: Sequence[Any], left_ms: float) -> list[Any]:
        """Those of some scales that answer in the time that is left. Raises `MvlmError` where none does."""
        if self.costs is None or math.isinf(left_ms):
            return list(scales)
        takes = {m: self._answer_ms(looked, m) for m in scales}
        in_time = [m for m, ms in takes.items() if ms <= left_ms]
        if not in_time:
            raise MvlmError(
                f"{max(left_ms, 0):.0f} ms are left, and the cheapest scale takes {min(takes.values()):.0f} ms here:"
                " allow more",
                code="deadline",
            )
        return in_time

    def _answer_ms(self, looked: Looked, scale: Any) -> float:
        """A question about a picture that has been looked at, and its answer, as nine of ten take at most."""
        assert self.costs is not None  # `_terms` saw to it
        composed = self.costs.composed
        if composed is None:
            return self.costs.answer_ms(scale)
        return composed.most.ms(self._left(looked, scale), self.costs.answer_tokens)

    def escalate(self, choice: Choice, logits: Array, looked: Looked) -> Choice | None:
        """The finer scale that is worth an escalation after the first token's logits (V,), or None."""
        if self.router is None or not self.router.looks_again:
            return None
        nested = self.reader.nested and not self.manifest.many_views
        costs = None if self.costs else in_tokens(self.router, looked)
        if self.costs and self.costs.composed and self.manifest.many_views:
            costs = self._left_ms(looked, self.costs.composed.usual)
        return self.router.escalate(choice, first_margin(logits), keeps_cache=nested, costs=costs)
