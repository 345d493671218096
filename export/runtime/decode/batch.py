"""Several answers written at once: a step of the language model reads its weights once for all of them.

Letters: B conversations, D width, V vocabulary.

Writing a token takes about as long as reading every weight, whether for one conversation or for a few. Reading a prompt
does not: it multiplies for each position, and the attention that it runs in takes one conversation at a time behind
what was read before. So questions are read one after another, each behind its own picture, and written together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.runtime.answer import Answer, Clock, Stop
from export.runtime.answerer import Answerer, Begun
from export.runtime.backends.onnx import Decoder
from export.runtime.backends.together import Together
from export.runtime.looked import Looked
from export.runtime.request import Request

from .writing import Writing

Array = NDArray[np.float32]
# A step for more takes as much longer (benchmarks/results/together.json); and what memory they may take.
_MOST, _MOST_BYTES = 8, 2**30


@dataclass
class _Row:
    """One of the answers that are being written."""

    place: int  # among all that were asked for
    looked: Looked
    begun: Begun
    writing: Writing
    clock: Clock

    def answer(self) -> Answer:
        self.writing.end()
        return self.begun.answer(self.writing.written, self.clock.since(self.looked.timings))


def answer_many(answerer: Answerer, pictures: Iterable[Looked], requests: Sequence[Request]) -> list[Answer]:
    """Answer each request, which was checked, about the picture beside it, in their order: as one by one.

    A picture is taken when its turn comes. They are written together where the decoder takes several, unless for one of
    them nothing is written (`choices`, one token) or there is a deadline: that is each answer's own, and would run
    while others are read. Written together, each scale is chosen before any answer is read: where `mvlm bench` has
    measured, one by one could choose a scale that an answer before it left in the cache.
    """
    asked = zip(requests, pictures, strict=True)
    alone = any(r.choices or r.max_new_tokens == 1 or r.deadline_ms is not None for r in requests)
    positions = max(map(answerer.most_positions, set(requests)), default=1)
    most = 1 if alone or not answerer.decoder.takes_several else _most(answerer.decoder, positions)
    if most == 1:
        return [answerer.stream(looked, request, Clock(request.deadline_ms)).read() for request, looked in asked]
    return _written_together(answerer, asked, Together(answerer.decoder, most, positions), most)


def _most(decoder: Decoder, positions: int) -> int:
    """How many conversations are written together."""
    facts = decoder.facts
    one = len(facts.past) * facts.kv_heads * positions * facts.head_dim * np.dtype(facts.cache_dtype).itemsize
    return max(1, min(_MOST, _MOST_BYTES // one))


def _written_together(
    answerer: Answerer, asked: Iterable[tuple[Request, Looked]], together: Together, most: int
) -> list[Answer]:
    """Up to `most` at a time: a new one begins where one has ended."""
    waiting = enumerate(asked)
    answers: dict[int, Answer] = {}
    rows: list[_Row] = []
    while True:
        while len(rows) < most and (following := next(waiting, None)):
            row = _begin(answerer, *following, together)
            if row.writing.ended:
                answers[row.place] = row.answer()
            else:
                rows.append(row)
        if not rows:
            return [answers[place] for place in sorted(answers)]
        _step(answerer, rows, together)
        for at in reversed(range(len(rows))):  # the last row, which takes a free place, has been looked at before
            if not rows[at].writing.goes_on():
                answers[rows[at].place] = rows[at].answer()
                together.drop(at)
                rows[at] = rows[-1]
                rows.pop()


def _begin(answerer: Answerer, place: int, asked: tuple[Request, Looked], together: Together) -> _Row:
    """Read a question up to its first token, and keep its conversation if the answer goes on."""
    (request, looked), clock, stop = asked, Clock(), Stop()
    writing = Writing(answerer.task(request), clock, stop)
    with answerer.begin(looked, request, clock, stop) as begun:
        assert begun.read is not None  # nobody stops it
        conversation, logits = begun.read
        writing.take(logits)
        if writing.goes_on():
            together.add(conversation.cache)
    return _Row(place, looked, begun, writing, clock)


def _step(answerer: Answerer, rows: Sequence[_Row], together: Together) -> None:
    """One more token of every answer. Each waits for all, so the time counts in full for each."""
    started = time.perf_counter()
    logits = together.step(answerer.table.rows([row.writing.token for row in rows]))  # (B, D) -> (B, V)
    ms = 1000 * (time.perf_counter() - started)
    for row, of_row in zip(rows, logits, strict=True):
        row.clock.add("decode", ms)
        row.writing.take(of_row)
