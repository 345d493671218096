"""Conversations that come and go while their answers are written together, each in a cache of its own before and after.

Letters: B conversations, D width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from export.runtime.backends.onnx import Decoder
from export.runtime.backends.together import Together

from .steps import Follow
from .transcript import Reading

Array = NDArray[np.float32]
MOST = 8  # a step for more takes as much longer (benchmarks/results/together.json)
_MOST_BYTES = 2**30
_ROUND_UP = 256  # positions


class Shared:
    """Reads one more token of every conversation: together where the decoder takes several and memory allows it.

    A conversation that is alone stays in its own cache, so that one caller pays nothing for what several gain.
    """

    def __init__(
        self, decoder: Decoder, rows: Callable[[Sequence[int]], Array], most: int = MOST, most_bytes: int = _MOST_BYTES
    ) -> None:
        """`rows` gives the embeddings of ids."""
        facts = decoder.facts
        self._decoder, self._embeddings = decoder, rows
        self._most = most if decoder.takes_several else 1
        a_position = len(facts.past) * facts.kv_heads * facts.head_dim * np.dtype(facts.cache_dtype).itemsize
        self._most_positions = most_bytes // a_position  # of all rows
        self._rows: list[Reading] = []
        self._together: Together | None = None

    def step(self, follows: Sequence[Follow]) -> list[Array | BaseException]:
        """Logits (V,) behind each token, in their order; or why there are none (a panic of a library too)."""
        if len(follows) > 1 and self._most > 1:
            self._join([follow.conversation for follow in follows if isinstance(follow.conversation, Reading)])
        by_row = {id(reading): row for row, reading in enumerate(self._rows)}
        here = [follow for follow in follows if id(follow.conversation) in by_row]
        results: dict[int, Array | BaseException] = {}
        if here:
            ordered = sorted(here, key=lambda follow: by_row[id(follow.conversation)])
            results = dict(zip(map(id, ordered), self._step_together(ordered), strict=True))
        return [results[id(follow)] if id(follow) in results else _alone(follow) for follow in follows]

    def _step_together(self, ordered: Sequence[Follow]) -> list[Array | BaseException]:
        """One more token of every row. Each waits for all, so the time counts in full for each."""
        assert self._together is not None
        started = time.perf_counter()
        try:
            logits = self._together.step(self._embeddings([follow.token for follow in ordered]))  # (B, V)
        except BaseException as error:
            return [error] * len(ordered)
        ms = 1000 * (time.perf_counter() - started)
        for follow, reading in zip(ordered, self._rows, strict=True):
            reading.held.keys.append(follow.token)
            follow.clock.add("decode", ms)
        return list(logits)

    # Who is in

    def _join(self, readings: Sequence[Reading]) -> None:
        """Let those in that are not yet, and see to it that every row has room for one more position."""
        new = [reading for reading in readings if reading.away is None]
        needed = max(len(reading.held.keys) for reading in (*self._rows, *new)) + 1
        positions = -(-needed // _ROUND_UP) * _ROUND_UP
        allowed = min(self._most, self._most_positions // positions)
        while len(self._rows) > max(allowed, 0):  # the rows have grown beyond what memory is allowed
            self._rows[-1].come_home()
        if allowed < 2:
            return
        if self._together is None:
            self._together = Together(self._decoder, self._most, positions)
        elif self._together.positions < needed:
            self._together.grow(positions)
        for reading in new[: allowed - len(self._rows)]:
            self._together.add(reading.cache)
            self._rows.append(reading)
            reading.away = lambda reading=reading: self._leave(reading)

    def _leave(self, reading: Reading) -> None:
        assert self._together is not None
        row = next(row for row, other in enumerate(self._rows) if other is reading)
        self._together.give_back(row, reading.cache)
        self._rows[row] = self._rows[-1]  # the last row takes the free place
        self._rows.pop()
        if not self._rows:
            self._together = None


def _alone(follow: Follow) -> Array | BaseException:
    try:
        return follow.run()
    except BaseException as error:
        return error
