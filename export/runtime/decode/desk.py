"""Several answers at one decoder: who is reading a prompt reads a piece of it, and who is writing gets one more token.

A request joins at the next step and leaves when it ends. Prompts are read in the order in which they came, in pieces
that take about as long as anybody's next token may be kept waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from export.runtime.answer import Answer
from export.runtime.backends.onnx import Decoder
from export.runtime.errors import MvlmError

from .shared import MOST, Shared
from .steps import Follow, Piece, Read, Steps

Array = NDArray[np.float32]
STALL_MS = 100.0
_LEAST = 16  # positions: fewer are not read faster


class Listener(Protocol):
    """Who is told of one answer."""

    @property
    def stopped(self) -> bool:
        """Whether nobody waits for the answer any more."""

    def put(self, piece: Piece) -> None: ...

    def token(self) -> None:
        """A token was picked."""

    def ended(self, answer: Answer) -> None: ...

    def failed(self, error: BaseException) -> None: ...


@dataclass(eq=False)
class _Seat:
    steps: Steps
    listener: Listener
    waits: Read | Follow | None = None  # None: it has not begun


@dataclass
class Pace:
    """How many positions of a prompt are read at once, so that it takes about `ms` at most."""

    ms: float = STALL_MS
    _ms_a_position: float | None = field(default=None, init=False)

    @property
    def positions(self) -> int:
        """At least a few, however slow the machine is."""
        return max(_LEAST, int(self.ms / self._ms_a_position)) if self._ms_a_position else 2 * _LEAST

    def took(self, positions: int, ms: float) -> None:
        """What was measured; the latest counts most."""
        now = ms / positions
        self._ms_a_position = now if self._ms_a_position is None else 0.5 * (self._ms_a_position + now)


class Desk:
    """The answers that are under way. For one thread."""

    def __init__(
        self, decoder: Decoder, rows: Callable[[Sequence[int]], Array], most: int = MOST, stall_ms: float = STALL_MS
    ) -> None:
        """`rows` gives the embeddings of ids; `most` answers are written together."""
        self._shared, self.pace = Shared(decoder, rows, most), Pace(stall_ms)
        self._seats: list[_Seat] = []

    def __len__(self) -> int:
        return len(self._seats)

    def sit(self, steps: Steps, listener: Listener) -> None:
        """Let an answer begin, once those before it have read their prompts: it may begin as one of them does."""
        self._seats.append(_Seat(steps, listener))

    def turn(self) -> None:
        """A piece of the oldest prompt that is being read, and a token of every answer that is being written."""
        for seat in [seat for seat in self._seats if not isinstance(seat.waits, Follow) and seat.listener.stopped]:
            self._fail(seat, MvlmError("the caller has gone", code="closed"))
        reading = next((seat for seat in self._seats if not isinstance(seat.waits, Follow)), None)
        if reading and reading.waits is None:
            self._go_on(reading, None)
        if reading and isinstance(reading.waits, Read):
            self._read(reading, reading.waits)
        writing = [(seat, seat.waits) for seat in self._seats if isinstance(seat.waits, Follow)]
        if not writing:
            return
        results = self._shared.step([follow for _, follow in writing])
        for (seat, _), result in zip(writing, results, strict=True):
            if isinstance(result, BaseException):
                self._fail(seat, result)
            else:
                self._go_on(seat, result)

    def _read(self, seat: _Seat, read: Read) -> None:
        kept_waiting = any(isinstance(other.waits, Follow) for other in self._seats)
        most = self.pace.positions if kept_waiting else None
        count, started = read.next_positions(most), time.perf_counter()
        try:
            logits = read.more(most)
        except BaseException as error:
            self._fail(seat, error)
            return
        self.pace.took(count, 1000 * (time.perf_counter() - started))
        if logits is not None:
            self._go_on(seat, logits)

    def _go_on(self, seat: _Seat, logits: Array | None) -> None:
        """Let an answer take its logits, and give out what comes, up to its next step."""
        if logits is not None:
            seat.listener.token()
        try:
            step = seat.steps.send(logits)
            while isinstance(step, Piece):
                seat.listener.put(step)
                step = next(seat.steps)
            seat.waits = step
        except StopIteration as end:
            self._seats.remove(seat)
            seat.listener.ended(end.value)
        except BaseException as error:
            self._fail(seat, error)

    def _fail(self, seat: _Seat, error: BaseException) -> None:
        """End an answer that does not come; what it held is given back."""
        self._seats.remove(seat)
        seat.listener.failed(error)
        seat.steps.close()
