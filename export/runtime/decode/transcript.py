"""What the language model is to read, position by position, and what it has read before: nothing is read twice.

A position's keys and values depend on nothing behind it. So whatever two transcripts begin with alike holds for both:
the ids of a system text, the turns so far, a picture at its scale. Where the connector is prefix-nested, a token of a
picture is the same at every scale that has it, and a finer scale goes on where the coarser one ended.

Letters: S positions, D width, V vocabulary.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.answer import Clock

from .conversation import PictureAtScale
from .steps import Read

Array = NDArray[np.float32]
_ROUND_UP = 64  # positions
_MOST_HELD = 256  # conversations: of small ones many fit the bytes, and each is looked through for what it begins with
_WORTH_COPYING = 16  # positions: fewer are read again as quickly


@dataclass(frozen=True)
class Words:
    """A run of ids."""

    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def identities(self) -> Sequence[Hashable]:
        return self.ids


@dataclass(frozen=True)
class Transcript:
    """Words and pictures in their order."""

    parts: tuple[Words | PictureAtScale, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def identities(self) -> list[Hashable]:
        """One for each position; two transcripts with the same first keys read the same there."""
        return [key for part in self.parts for key in part.identities()]

    def ids(self) -> Iterator[int]:
        """Those of the words."""
        return (token for part in self.parts if isinstance(part, Words) for token in part.ids)

    def embeddings(self, rows: Callable[[Sequence[int]], Array], since: int, clock: Clock) -> Array:
        """What stands behind the first `since` positions: (S - since, D). Pictures before are not computed."""
        pieces, place = [], 0
        for part in self.parts:
            skipped = max(0, since - place)
            place += len(part)
            if skipped >= len(part):
                continue
            if isinstance(part, Words):
                with clock.stage("connector"):
                    pieces.append(rows(part.ids[skipped:]))
            else:
                pieces.append(part.embeddings(skipped, clock))
        return np.concatenate(pieces)


@dataclass
class Held:
    """A cache, and the key of each of its positions."""

    cache: Any
    keys: list[Hashable]

    def common(self, keys: Sequence[Hashable]) -> int:
        """How many first positions are the same."""
        most = min(len(self.keys), len(keys))
        return next((place for place in range(most) if self.keys[place] != keys[place]), most)

    def begins_with(self, other: Held) -> bool:
        """Whether all that another holds is held here too."""
        return other is not self and self.common(other.keys) == len(other.keys)


class Reading:
    """One transcript in a cache, and the answer that is written behind it.

    As a context manager it brings back, at its end, what was read elsewhere: see `away`.
    """

    def __init__(self, decoder: Any, rows: Callable[[Sequence[int]], Array], held: Held) -> None:
        self._decoder, self._rows, self.held = decoder, rows, held
        self.new = 0  # positions that the last transcript had to be read for
        # Set by who reads on in a cache of several conversations: copies what is new into this one, and forgets it.
        self.away: Callable[[], None] | None = None

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.come_home()

    def come_home(self) -> None:
        """Have everything that was read in the cache of this conversation again."""
        if self.away:
            away, self.away = self.away, None
            away()

    def read(self, transcript: Transcript, clock: Clock) -> Generator[Read, Array, Array]:
        """Read what is new: logits (V,) behind it. The rest of what was held is forgotten."""
        keys = transcript.identities()
        kept = min(self.held.common(keys), len(keys) - 1)  # the last position is read again, for its logits
        self.held.cache.rewind(kept)
        self.held.keys[kept:] = []
        new = transcript.embeddings(self._rows, kept, clock)  # (S - kept, D)
        self.new = len(new)
        return (yield Read(self._decoder, self.held.cache, new, keys[kept:], self.held.keys, clock))

    def follow(self, token: int) -> Array:
        """Read one more token: logits (V,) of the next."""
        assert self.away is None
        logits: Array = self._decoder.step(self._rows([token]), self.held.cache)
        self.held.keys.append(token)
        return logits

    @property
    def cache(self) -> Any:
        return self.held.cache

    @property
    def used(self) -> int:
        return int(self.held.cache.used)

    def rewind(self, used: int) -> None:
        """Forget what was read after the first `used` positions."""
        self.held.cache.rewind(used)
        self.held.keys[used:] = []


class Memory:
    """What was read lately, within a bound of bytes: the caches of conversations, least recently used first out.

    Of several that hold the same, one is kept.
    """

    def __init__(self, decoder: Any, most_bytes: int) -> None:
        facts = decoder.facts
        one = np.dtype(facts.cache_dtype).itemsize
        self.bytes_a_position = len(facts.past) * facts.kv_heads * facts.head_dim * one
        self._decoder, self._most = decoder, most_bytes
        self._held: OrderedDict[int, Held] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, keys: Sequence[Hashable], positions: int) -> Iterator[Held]:
        """A cache for `positions` that nobody else uses, with as much of `keys` read as is held. It is kept after."""
        held = self._take(keys, positions)
        try:
            yield held
        finally:
            self._keep(held)

    def known(self, keys: Sequence[Hashable]) -> int:
        """How many first positions of `keys` are held by a conversation that is free."""
        with self._lock:
            return max((held.common(keys) for held in self._held.values()), default=0)

    def keep_copy(self, held: Held) -> None:
        """Keep what is read of a conversation that goes on, for another that begins alike."""
        copy = Held(self._decoder.cache(held.cache.positions), list(held.keys))
        copy.cache.copy(held.cache, held.cache.used)
        self._keep(copy)

    @property
    def held_bytes(self) -> int:
        with self._lock:
            return self._bytes()

    def _take(self, keys: Sequence[Hashable], positions: int) -> Held:
        with self._lock:
            best = max(self._held.values(), key=lambda held: held.common(keys), default=None)
            common = best.common(keys) if best else 0
            # What another conversation still needs is copied; what this one goes on from is taken.
            goes_on = best is not None and common >= len(best.keys) - 1
            if best is not None and goes_on:
                del self._held[id(best)]
                if best.cache.positions >= positions:
                    return best
            fresh = Held(self._decoder.cache(-(-positions // _ROUND_UP) * _ROUND_UP), [])
            if best is not None and (goes_on or common >= _WORTH_COPYING):
                fresh.cache.copy(best.cache, common)
                fresh.keys = list(best.keys[:common])
            return fresh

    def _keep(self, held: Held) -> None:
        if held.cache.used != len(held.keys):  # it was left in the middle of a step
            return
        with self._lock:
            for key in [key for key, other in self._held.items() if held.begins_with(other)]:
                del self._held[key]
            self._held[id(held)] = held
            while self._held and (self._bytes() > self._most or len(self._held) > _MOST_HELD):
                self._held.popitem(last=False)

    def _bytes(self) -> int:
        return sum(len(held.keys) for held in self._held.values()) * self.bytes_a_position
