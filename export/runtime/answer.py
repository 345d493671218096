"""An answer, and the stream that it comes from."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from .errors import MvlmError
from .views.scale import ScaleWord

Finish = Literal["stop", "length", "deadline", "stopped"]


@dataclass(frozen=True)
class Likely:
    """A token of an answer, and how likely the model found it.

    Attributes:
        text: the token as it would stand in a text; half a character is written as U+FFFD.
        logprob: the natural logarithm of the model's own probability, before temperature and biases.
        instead: the likeliest tokens at its place, itself among them if it is one, falling.
    """

    text: str
    logprob: float
    instead: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What was answered, and why in so many tokens.

    Attributes:
        num_visual_tokens: all that were shown; marks around them and newlines between them apart (`separators`).
        probability: that this answer is right, as the router saw it; None when the scale was named.
        probabilities: the same at each scale of the bundle; empty when the scale was named.
        confidence: the probability that the model itself gives to this answer: the product over its tokens, the one
            that ends it included (the `confidence` of labels/). With `choices`, its share among them.
        out_of_distribution: whether the router did not trust itself, and the finest allowed scale was taken.
        escalated: the scale that was asked first, when the answer comes from a second, closer look.
        scale: at which the picture was shown: a number, or with tiles a word such as 16@4; of several pictures the
            last one's, None where none was shown.
        views: how many views of pictures were shown, overviews and tiles.
        separators: the marks and newlines that stood beside the visual tokens.
        tiles: for each picture rows and columns of the tiles that it was shown in; (0, 0) where it had none.
        finish: what ended the answer: the model or a stop text (`stop`), the longest answer allowed (`length`), the
            `deadline`, or the caller (`stopped`).
        choices: with `choices`, the share of each.
        token_ids: the answer's ids, without the stop id.
        timings: milliseconds of each stage; those of looking at the picture are the same in every answer about it.
        logprobs: with that option, one for each of `token_ids`.
        scales: in a conversation, that of each picture.
        prompt_tokens: in a conversation, all that stands before the answer; of these `new_tokens` had to be read.
        dropped_turns: in a conversation, the messages that were left out because they did not fit.
    """

    text: str
    num_visual_tokens: int
    reason: str
    probability: float | None = None
    probabilities: dict[ScaleWord, float] = field(default_factory=dict)
    confidence: float = 1.0
    out_of_distribution: bool = False
    escalated: ScaleWord | None = None
    finish: Finish = "stop"
    choices: dict[str, float] = field(default_factory=dict)
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Likely, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    scales: tuple[ScaleWord, ...] = ()
    prompt_tokens: int = 0
    new_tokens: int = 0
    dropped_turns: int = 0
    scale: ScaleWord | None = None
    views: int = 0
    separators: int = 0
    tiles: tuple[tuple[int, int], ...] = ()


class Stream:
    """The text of an answer in pieces, as they are generated: iterate, or use as a context manager.

    Work is done in `next` only. Leaving the context, `close`, or the end of the answer gives back what the answer held.
    `stop` may be called from any thread, and ends the answer within a token.
    """

    def __init__(self, work: Callable[[Stop], Generator[str, None, Answer]]) -> None:
        self._stop = Stop()
        self._work = work(self._stop)
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._text = ""

    @property
    def text(self) -> str:
        """The text so far."""
        return self._text

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises `MvlmError` before it is there."""
        if self._answer is None:
            raise MvlmError("the answer has not ended: read the stream to its end first", code="not-ended")
        return self._answer

    def read(self) -> Answer:
        """Read to the end and return the answer."""
        for _ in self:
            pass
        return self.answer

    def stop(self) -> None:
        """End the answer within a token."""
        self._stop.now = True

    def close(self) -> None:
        """Stop, and give back what the answer held. What was read so far stays in `text`, and in `answer`."""
        self.stop()
        if inspect.getgeneratorstate(self._work) == inspect.GEN_CREATED:
            self._work.close()
        for _ in self:
            pass

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._lock:
            try:
                piece = next(self._work)
            except StopIteration as end:
                self._answer = end.value or self._answer
                raise StopIteration from None
            self._text += piece
            return piece

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def read_in_thread(stream: Stream) -> Answer:
    """`Stream.read` in a thread. Cancelled, it stops within a token."""
    try:
        return await asyncio.to_thread(stream.read)
    finally:
        stream.stop()


async def pieces_in_thread(stream: Stream) -> AsyncIterator[str]:
    """The pieces of a stream, its steps in a thread. Left early, it stops within a token."""
    try:
        while (piece := await asyncio.to_thread(next, stream, None)) is not None:
            yield piece
    finally:
        stream.stop()
        await asyncio.shield(asyncio.to_thread(stream.close))


@dataclass
class Stop:
    """Set from any thread, looked at before each token."""

    now: bool = False


class Clock:
    """Adds up milliseconds by stage, and knows how much time is left."""

    def __init__(self, deadline_ms: float | None = None) -> None:
        self.timings: dict[str, float] = {}
        self._deadline_ms = deadline_ms
        self._started = time.perf_counter()

    def fork(self) -> Clock:
        """A clock of its own that goes on from here."""
        other = Clock(self._deadline_ms)
        other.timings, other._started = dict(self.timings), self._started
        return other

    def shared(self, among: int) -> Clock:
        """A clock of the same stages for one of several things, each with its share of the time that is left."""
        other = Clock(None if self._deadline_ms is None else self.left_ms / among)
        other.timings = self.timings
        return other

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, 1000 * (time.perf_counter() - started))

    def add(self, name: str, ms: float) -> None:
        """Milliseconds of a stage that were measured elsewhere."""
        key = f"{name}_ms"
        self.timings[key] = self.timings.get(key, 0.0) + ms

    def since(self, earlier: dict[str, float]) -> dict[str, float]:
        """The stages so far, those of an earlier clock first; a stage of both is their sum."""
        stages = [*earlier, *(stage for stage in self.timings if stage not in earlier)]
        return {stage: earlier.get(stage, 0.0) + self.timings.get(stage, 0.0) for stage in stages}

    @property
    def left_ms(self) -> float:
        """Milliseconds until the deadline; infinite without one."""
        if self._deadline_ms is None:
            return float("inf")
        return self._deadline_ms - 1000 * (time.perf_counter() - self._started)
