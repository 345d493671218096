"""What the decoder has read of one picture, kept so that nothing is read twice.

Letters: L positions of the picture, S positions, D width, V vocabulary.

A position's keys and values depend on nothing behind it. So what was read of the ids that every prompt begins with
holds for all pictures, and what was read of a picture's positions holds for every question that stands behind them. It
holds for another scale too, as far as both begin alike. For a `query` (arXiv 2405.19315) or `nested_pool` connector
token i is the same for every m > i, and going to a finer scale appends the tokens that are new; a model that puts the
overview before the tiles keeps it when tiles come, and one that puts it last reads anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.runtime.answer import Clock
from export.runtime.backends.onnx import Cache, Decoder
from export.runtime.prompt import Prompt
from export.runtime.views.scale import ScaleWord, coarse_to_fine

from .sampling import EmbeddingTable

Array = NDArray[np.float32]
_ROUND_UP = 64  # positions; a cache that is a little too long serves the next question too
_WORTH_COPYING = 16  # positions: fewer are read again as quickly


@dataclass
class Reader:
    """The language model with what stands around every question: shared by all pictures."""

    decoder: Decoder
    table: EmbeddingTable
    prompt: Prompt
    nested: bool

    def __post_init__(self) -> None:
        lead = self.prompt.lead
        self.lead = self.decoder.cache(max(1, len(lead)))
        if lead:
            self.decoder.step(self.table.rows(lead), self.lead)

    def positions(self, question: str, num_visual_tokens: int, max_new_tokens: int) -> int:
        """How many positions a question and its answer need."""
        return len(self.prompt.before(question)) + num_visual_tokens + len(self.prompt.after(question)) + max_new_tokens


class Reads(Protocol):
    """What an answer is written behind: it reads on token by token, and can be taken back."""

    @property
    def used(self) -> int: ...

    def follow(self, token: int) -> Array: ...

    def rewind(self, used: int) -> None: ...


class PictureAtScale(Protocol):
    """A picture as it is read at one scale, L positions long."""

    def __len__(self) -> int: ...

    def identities(self) -> Sequence[Hashable]:
        """One for each position; two that begin with the same ones read the same there."""

    def embeddings(self, since: int, clock: Clock) -> Array:
        """What stands behind the first `since` positions: (L - since, D)."""


Pictures = Callable[[Any], PictureAtScale]  # by their scales


@dataclass(frozen=True)
class Given:
    """A picture whose embeddings (L, D) are at hand."""

    embeds: Array

    def __len__(self) -> int:
        return len(self.embeds)

    def identities(self) -> Sequence[Hashable]:
        return range(len(self))

    def embeddings(self, since: int, clock: Clock) -> Array:
        with clock.stage("connector"):
            return self.embeds[since:]


class Conversation:
    """One cache, and how much of a picture stands in it."""

    def __init__(self, reader: Reader, pictures: Pictures) -> None:
        """`pictures` is the picture at each scale."""
        self._reader = reader
        self._pictures = pictures
        self._cache: Cache | None = None
        self._keys: Sequence[Hashable] = ()  # of the picture's positions in the cache
        self.scale: ScaleWord = 0  # at which the picture is read whole; 0 where it is not

    def ask(self, question: str, scale: ScaleWord, room: int, clock: Clock) -> Array:
        """Read a question at a scale, with `room` for as many tokens of the answer: logits (V,) of its first token."""
        reader, picture = self._reader, self._pictures(scale)
        kept = self.common(picture)
        parts = [picture.embeddings(kept, clock), reader.table.rows(reader.prompt.after(question))]
        with clock.stage("prefill"):
            if not reader.prompt.picture_first:
                parts.insert(0, reader.table.rows(reader.prompt.before(question)[reader.lead.used :]))
            cache = self._with_room(kept, reader.positions(question, len(picture), room))
            self.scale, self._keys = 0, ()  # until the picture is read whole
            logits = reader.decoder.step(np.concatenate(parts), cache)  # (S, D) -> (V,)
            self.scale, self._keys = scale, picture.identities()
        return logits

    def go_on_from(self, other: Conversation, picture: PictureAtScale) -> None:
        """Start with a copy of what another one, of the same picture, has read of it."""
        kept = other.common(picture)
        if other._cache is not None and kept >= _WORTH_COPYING:
            lead = self._reader.lead.used
            self._cache = self._reader.decoder.cache(_rounded(lead + len(picture) + _ROUND_UP))
            self._cache.copy(other._cache, lead + kept)
            self._keys = picture.identities()[:kept]

    def follow(self, token: int) -> Array:
        """Read one more token: logits (V,) of the next."""
        assert self._cache is not None
        return self._reader.decoder.step(self._reader.table.rows([token]), self._cache)

    @property
    def cache(self) -> Cache:
        """What was read; there is one once something was asked."""
        assert self._cache is not None
        return self._cache

    @property
    def used(self) -> int:
        return self._cache.used if self._cache else 0

    def rewind(self, used: int) -> None:
        """Forget what was read after the first `used` positions."""
        assert self._cache is not None
        self._cache.rewind(used)

    def kept(self, scale: ScaleWord) -> int:
        """How many of the picture's positions in the cache hold for a scale."""
        return self.common(self._pictures(scale))

    def common(self, picture: PictureAtScale) -> int:
        """How many of the picture's positions in the cache hold for the picture at a scale."""
        if not self._reader.prompt.picture_first:
            return 0
        held, wanted = self._keys, picture.identities()
        if held is wanted:
            return len(wanted)
        most = min(len(held), len(wanted))
        return next((place for place in range(most) if held[place] != wanted[place]), most)

    def _with_room(self, kept: int, positions: int) -> Cache:
        """The cache with its lead and `kept` positions behind it, long enough for `positions`."""
        kept += self._reader.lead.used
        old = self._cache
        if old is None or old.positions < positions:
            self._cache = self._reader.decoder.cache(_rounded(positions))
            self._cache.copy(old or self._reader.lead, kept)
        else:
            old.rewind(kept)
        assert self._cache is not None
        return self._cache


class Shelf:
    """The conversations about one picture: each is used by one thread at a time, and kept for the next question.

    At most one is kept for each scale (one in all where the scales are nested), so a picture's memory is bounded
    whatever is asked and however many ask. One of a new scale goes on from whichever begins as it does.
    """

    def __init__(self, reader: Reader, pictures: Pictures) -> None:
        self._reader = reader
        self._pictures = pictures
        self._kept: dict[ScaleWord, Conversation] = {}
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, scale: ScaleWord) -> Iterator[Conversation]:
        """A conversation that nobody else uses, with this scale read already if one of that kind is free."""
        with self._lock:
            conversation = self._kept.pop(self._key(scale), None) or self._new(scale)
        try:
            yield conversation
        finally:
            if conversation.scale and self._reader.prompt.picture_first:
                with self._lock:
                    self._kept.setdefault(self._key(conversation.scale), conversation)

    def ready(self) -> tuple[ScaleWord, ...]:
        """The scales whose tokens have been read already, by a conversation that is free."""
        with self._lock:
            return tuple(coarse_to_fine({kept.scale for kept in self._kept.values() if kept.scale}))

    def kept(self, scale: ScaleWord) -> int:
        """How many positions of a scale need not be read, as a conversation that is free holds them."""
        picture = self._pictures(scale)
        with self._lock:
            return max((kept.common(picture) for kept in self._kept.values()), default=0)

    def _new(self, scale: ScaleWord) -> Conversation:
        fresh, picture = Conversation(self._reader, self._pictures), self._pictures(scale)
        if self._kept:
            fresh.go_on_from(max(self._kept.values(), key=lambda kept: kept.common(picture)), picture)
        return fresh

    def _key(self, scale: ScaleWord) -> ScaleWord:
        return 0 if self._reader.nested else scale


def _rounded(positions: int) -> int:
    return -(-positions // _ROUND_UP) * _ROUND_UP
