"""The answer itself, token by token: when it ends, and what of it can be shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from export.runtime.answer import Clock, Finish, Stop
from export.runtime.request import Request

from .conversation import Reads
from .sampling import Sampler
from .text import GrowingText

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """What to write: the request, how ids become text, and which ids end an answer."""

    request: Request
    decode: Callable[[Sequence[int]], str]
    stop_ids: frozenset[int]


@dataclass
class Written:
    """An answer so far; `Answer` says what each part means."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    confidence: float = 1.0
    finish: Finish = "stop"
    choices: dict[str, float] = field(default_factory=dict)


class Writing:
    """An answer while it is written: given logits, it picks the token that is to be read next, until it ends."""

    def __init__(self, task: Task, clock: Clock, stop: Stop) -> None:
        self.written = Written()
        self._task, self._clock, self._stop = task, clock, stop
        self._sampler = Sampler(task.request)
        self._text = GrowingText(task.decode, task.request.stop)
        self.ended = False
        self._took_at: float | None = None
        self._step_ms = 0.0

    @property
    def token(self) -> int:
        """The last one of the answer."""
        return self.written.token_ids[-1]

    def take(self, logits: Array) -> str:
        """Pick the next token from its logits (V,): the piece of text that can be given out now."""
        now = time.perf_counter()
        if self._took_at is not None:
            self._step_ms = 1000 * (now - self._took_at)
        self._took_at = now
        with self._clock.stage("decode"):
            token, likely = self._sampler.pick(logits)
        self.written.confidence *= likely
        self.ended = token in self._task.stop_ids
        if self.ended:
            return ""
        self.written.token_ids.append(token)
        piece = self._text.grow(self.written.token_ids)
        self.ended = self._text.stopped
        return piece

    def goes_on(self) -> bool:
        """Whether `token` is to be read. If not, `written` says what ended the answer."""
        if not self.ended and (cut := self._cut_short()):
            self.written.finish = cut
            self.ended = True
        return not self.ended

    def end(self) -> str:
        """What was held back, now that nothing follows; `written` is whole."""
        piece = self._text.end(self.written.token_ids)
        self.written.text = self._text.given
        return piece

    def _cut_short(self) -> Finish | None:
        if len(self.written.token_ids) == self._task.request.max_new_tokens:
            return "length"
        if self._stop.now:
            return "stopped"
        return "deadline" if self._clock.left_ms < self._step_ms else None


def write(conversation: Reads, logits: Array, task: Task, clock: Clock, stop: Stop) -> Generator[str, None, Written]:
    """Decode from the prompt's logits (V,), yield the pieces of the text, and return the whole."""
    writing = Writing(task, clock, stop)
    while True:
        if piece := writing.take(logits):
            yield piece
        if not writing.goes_on():
            break
        with clock.stage("decode"):
            logits = conversation.follow(writing.token)
    if piece := writing.end():
        yield piece
    return writing.written
