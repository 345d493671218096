"""What the decoder has read of one picture, kept so that nothing is read twice.

Letters: P patches, m visual tokens, S positions, D width, V vocabulary.

A position's keys and values depend on nothing behind it. So what was read of the ids that every prompt begins with
holds for all pictures, and what was read of a picture's tokens holds for every question that stands behind them. For a
`query` (arXiv 2405.19315) or `nested_pool` connector it holds for every larger scale too: token i is the same for
every m > i, and going to a finer scale appends the tokens that are new.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from export.runtime.answer import Clock
from export.runtime.backends.onnx import Cache, Decoder
from export.runtime.prompt import Prompt

from .sampling import EmbeddingTable

Array = NDArray[np.float32]
_ROUND_UP = 64  # positions; a cache that is a little too long serves the next question too


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


class Conversation:
    """One cache, and how much of a picture stands in it."""

    def __init__(self, reader: Reader, visual_tokens: Callable[[int], Array]) -> None:
        self._reader = reader
        self._visual_tokens = visual_tokens  # m -> (m, D)
        self._cache: Cache | None = None
        self.scale = 0

    def ask(self, question: str, num_visual_tokens: int, room: int, clock: Clock) -> Array:
        """Read a question at a scale, with `room` for as many tokens of the answer: logits (V,) of its first token."""
        reader, m = self._reader, num_visual_tokens
        kept = self.kept(m)
        parts = [reader.table.rows(reader.prompt.after(question))]
        with clock.stage("connector"):
            if kept < m:
                parts.insert(0, self._visual_tokens(m)[kept:])  # (m - kept, D)
        with clock.stage("prefill"):
            if not reader.prompt.picture_first:
                parts.insert(0, reader.table.rows(reader.prompt.before(question)[reader.lead.used :]))
            cache = self._with_room(kept, reader.positions(question, m, room))
            self.scale = 0  # until the picture is read whole
            logits = reader.decoder.step(np.concatenate(parts), cache)  # (S, D) -> (V,)
            self.scale = m
        return logits

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

    def kept(self, m: int) -> int:
        """How many of the visual tokens in the cache hold for scale m."""
        if not self._reader.prompt.picture_first:
            return 0
        return min(self.scale, m) if self._reader.nested or self.scale == m else 0

    def _with_room(self, kept: int, positions: int) -> Cache:
        """The cache with its lead and `kept` positions behind it, long enough for `positions`."""
        kept += self._reader.lead.used
        old = self._cache
        if old is None or old.positions < positions:
            self._cache = self._reader.decoder.cache(-(-positions // _ROUND_UP) * _ROUND_UP)
            self._cache.copy(old or self._reader.lead, kept)
        else:
            old.rewind(kept)
        assert self._cache is not None
        return self._cache


class Shelf:
    """The conversations about one picture: each is used by one thread at a time, and kept for the next question.

    At most one is kept for each scale (one in all where the scales are nested), so a picture's memory is bounded
    whatever is asked and however many ask.
    """

    def __init__(self, reader: Reader, visual_tokens: Callable[[int], Array]) -> None:
        self._reader = reader
        self._visual_tokens = visual_tokens
        self._kept: dict[int, Conversation] = {}
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, scale: int) -> Iterator[Conversation]:
        """A conversation that nobody else uses, with this scale read already if one of that kind is free."""
        with self._lock:
            kept = self._kept.pop(self._key(scale), None)
        conversation = kept or Conversation(self._reader, self._visual_tokens)
        try:
            yield conversation
        finally:
            if conversation.scale and self._reader.prompt.picture_first:
                with self._lock:
                    self._kept.setdefault(self._key(conversation.scale), conversation)

    def ready(self) -> tuple[int, ...]:
        """The scales whose tokens have been read already, by a conversation that is free."""
        with self._lock:
            return tuple(sorted({kept.scale for kept in self._kept.values() if kept.scale}))

    def kept(self, scale: int) -> int:
        """How many visual tokens of a scale need not be read, as a conversation that is free holds them."""
        with self._lock:
            return max((kept.kept(scale) for kept in self._kept.values()), default=0)

    def _key(self, scale: int) -> int:
        return 0 if self._reader.nested else scale
