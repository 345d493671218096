"""The answer itself, token by token: when it ends, and what of it can be shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.answer import Clock, Finish, Likely, Stop
from export.runtime.request import Request

from .constraint import Allowed
from .conversation import Reads
from .sampling import Sampler, likeliest, log_softmax
from .steps import Follow, Piece, Step
from .text import GrowingText

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """What to write: the request, how ids become text, which ids end an answer, and which may stand next.

    `spell` says how one token would stand in a text, `said` which ids stand in the prompt.
    """

    request: Request
    decode: Callable[[Sequence[int]], str]
    stop_ids: frozenset[int]
    spell: Callable[[int], str] = str
    allowed: Allowed | None = None
    said: tuple[int, ...] = ()


@dataclass
class Written:
    """An answer so far; `Answer` says what each part means."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    confidence: float = 1.0
    finish: Finish = "stop"
    choices: dict[str, float] = field(default_factory=dict)
    logprobs: list[Likely] = field(default_factory=list)


class Writing:
    """An answer while it is written: given logits, it picks the token that is to be read next, until it ends."""

    def __init__(self, task: Task, clock: Clock, stop: Stop) -> None:
        self.written = Written()
        self._task, self._clock, self._stop = task, clock, stop
        self._sampler = Sampler(task.request, task.allowed, task.said)
        self._text = GrowingText(task.decode, task.request.stop)
        self.ended = False
        self._took_at: float | None = None
        self._step_ms = 0.0
        self._given = 0  # of the logprobs

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
        if self._task.request.logprobs is not None:
            self.written.logprobs.append(self._likely(token, logits, self._task.request.logprobs))
        piece = self._text.grow(self.written.token_ids)
        self.ended = self._text.stopped or (self._task.allowed is not None and self._task.allowed.whole)
        return piece

    def new_logprobs(self) -> tuple[Likely, ...]:
        """Those of the tokens since it was last asked."""
        since, self._given = self._given, len(self.written.logprobs)
        return tuple(self.written.logprobs[since:])

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

    def _likely(self, token: int, logits: Array, count: int) -> Likely:
        scores, spell = log_softmax(logits), self._task.spell  # (V,)
        instead = tuple((spell(other), float(scores[other])) for other in likeliest(scores, count))
        return Likely(spell(token), float(scores[token]), instead)

    def _cut_short(self) -> Finish | None:
        if len(self.written.token_ids) == self._task.request.max_new_tokens:
            return "length"
        if self._stop.now:
            return "stopped"
        return "deadline" if self._clock.left_ms < self._step_ms else None


def write(conversation: Reads, logits: Array, task: Task, clock: Clock, stop: Stop) -> Generator[Step, Any, Written]:
    """The steps of an answer from the prompt's logits (V,), and the whole."""
    writing = Writing(task, clock, stop)
    while True:
        if piece := writing.take(logits):
            yield Piece(piece, writing.new_logprobs())
        if not writing.goes_on():
            break
        logits = yield Follow(conversation, writing.token, clock)
    piece, logprobs = writing.end(), writing.new_logprobs()
    if piece or logprobs:
        yield Piece(piece, logprobs)
    return writing.written
