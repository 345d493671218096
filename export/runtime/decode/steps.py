"""An answer as steps of the language model, so that whoever runs them may run those of several answers together.

A generator of steps does no work of the decoder itself. It yields what is to be done next, and is sent the logits that
come of it; in between it yields the pieces of its text. `alone` runs one such generator; `desk.Desk` runs several.

Letters: S positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.runtime.answer import Answer, Clock, Likely

from .conversation import Reads

Array = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """Text that can be given out, and the tokens since the last one, where they are asked for."""

    text: str
    logprobs: tuple[Likely, ...] = ()


class Read:
    """A prompt that is to be read behind what a conversation holds, whole or in pieces."""

    def __init__(
        self,
        decoder: Any,
        cache: Any,
        inputs_embeds: Array,
        keys: Sequence[Hashable],
        read: list[Hashable],
        clock: Clock,
    ) -> None:
        """`inputs_embeds` is (S, D); `keys` holds one for each position, and `read` gets those that are read."""
        self._decoder, self._cache, self._read, self._clock = decoder, cache, read, clock
        self._pieces = deque(decoder.pieces(inputs_embeds))
        self._keys = deque(keys)

    def next_positions(self, most: int | None = None) -> int:
        """How many positions `more` reads; `most` holds where pieces of any size give the same."""
        whole = len(self._pieces[0])
        if most is None or whole <= most or not self._decoder.reads_by_row:
            return whole
        return most - 1 if whole - most == 1 else most  # one position alone would be read as a token of an answer is

    def more(self, most: int | None = None) -> Array | None:
        """Read on: logits (V,) of the last position, or None while there is more to read."""
        count, piece = self.next_positions(most), self._pieces.popleft()
        if count < len(piece):
            self._pieces.appendleft(piece[count:])
        with self._clock.stage("prefill"):
            logits: Array = self._decoder.step(piece[:count], self._cache)
        self._read += [self._keys.popleft() for _ in range(count)]
        return None if self._pieces else logits


@dataclass(frozen=True)
class Follow:
    """One more token that is to be read."""

    conversation: Reads
    token: int
    clock: Clock

    def run(self) -> Array:
        """Logits (V,) of the next token."""
        with self.clock.stage("decode"):
            return self.conversation.follow(self.token)


Step = Piece | Read | Follow
Steps = Generator[Step, Any, Answer]  # Any: what is sent is logits (V,), but nothing after a piece


def alone(steps: Generator[Step, Any, T]) -> Generator[str, None, T]:
    """Run the steps of one answer: its pieces of text, and what it comes to."""
    logits: Array | None = None
    try:
        while True:
            try:
                step = steps.send(logits)
            except StopIteration as end:
                result: T = end.value
                return result
            logits = None
            if isinstance(step, Piece):
                if step.text:
                    yield step.text
            elif isinstance(step, Follow):
                logits = step.run()
            else:
                while logits is None:
                    logits = step.more()
    finally:
        steps.close()
