"""The answer itself, token by token: when it ends, and what of it can be shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .answer import Clock, Finish, Stop
from .conversation import Conversation
from .generate import Sampler
from .request import Request
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


def write(
    conversation: Conversation, logits: Array, task: Task, clock: Clock, stop: Stop
) -> Generator[str, None, Written]:
    """Decode from the prompt's logits (V,), yield the pieces of the text, and return the whole."""
    sampler = Sampler(task.request)
    text = GrowingText(task.decode, task.request.stop)
    written = Written()
    ids, step_ms = written.token_ids, 0.0
    while True:
        started = time.perf_counter()
        with clock.stage("decode"):
            token, likely = sampler.pick(logits)
        written.confidence *= likely
        if token in task.stop_ids:
            break
        ids.append(token)
        if piece := text.grow(ids):
            yield piece
        if text.stopped:
            break
        if cut := _cut_short(len(ids), task.request, clock.left_ms < step_ms, stop):
            written.finish = cut
            break
        with clock.stage("decode"):
            logits = conversation.follow(token)
        step_ms = 1000 * (time.perf_counter() - started)
    if piece := text.end(ids):
        yield piece
    written.text = text.given
    return written


def _cut_short(length: int, request: Request, late: bool, stop: Stop) -> Finish | None:
    if length == request.max_new_tokens:
        return "length"
    if stop.now:
        return "stopped"
    return "deadline" if late else None
