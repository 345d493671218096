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
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.answer import Answer, Clock, Stop
from export.runtime.backends.onnx import Cache, Decoder, engine_errors, step_inputs
from export.runtime.request import Request

from .writing import Task, Writing

if TYPE_CHECKING:
    from export.runtime.engine import Begun, Runtime
    from export.runtime.view import View

Array = NDArray[np.float32]
# A step for more takes as much longer (benchmarks/results/together.json); and what memory they may take.
_MOST, _MOST_BYTES = 8, 2**30


class Together:
    """Keys and values of up to `most` conversations, each of its own length, and the steps that read all on."""

    def __init__(self, decoder: Decoder, most: int, positions: int) -> None:
        self._decoder, facts = decoder, decoder.facts
        shape = (most, facts.kv_heads, positions, facts.head_dim)
        # Zeros that nobody wrote to take no memory: what is unused of a long cache costs nothing.
        self._buffers = [np.zeros(shape, facts.cache_dtype) for _ in facts.past]
        self._logits = np.zeros((most, decoder.vocabulary), np.float32)
        self._lengths: list[int] = []
        self._binding: Any = None  # of so many conversations as there are now

    def add(self, cache: Cache) -> None:
        """Copy a conversation into the next row."""
        row = len(self._lengths)
        for mine, theirs in zip(self._buffers, cache.values(), strict=True):
            mine[row, :, : cache.used] = theirs[0, :, : cache.used]
        self._lengths.append(cache.used)
        self._binding = None

    def drop(self, row: int) -> None:
        """Forget a conversation; the last one takes its row."""
        used = self._lengths[-1]
        for buffer in self._buffers:
            buffer[row, :, :used] = buffer[len(self._lengths) - 1, :, :used]
        self._lengths[row] = used
        self._lengths.pop()
        self._binding = None

    def step(self, inputs_embeds: Array) -> Array:
        """Read one more position in every row: (B, D) -> logits (B, V), which the next step writes over."""
        facts = self._decoder.facts
        feeds = {"inputs_embeds": np.ascontiguousarray(inputs_embeds[:, None])}  # (B, 1, D)
        feeds |= step_inputs(facts, self._lengths, steps=1)
        with engine_errors():
            self._binding = self._binding or self._bound()
            for role, name in facts.graph.inputs.items():
                self._binding.bind_cpu_input(name, feeds[role])
            self._decoder.sessions["decode"].run_with_iobinding(self._binding)
        self._lengths = [used + 1 for used in self._lengths]
        return self._logits[: len(self._lengths)]

    def _bound(self) -> Any:
        """A binding to the first rows: they lie in one piece, so nothing is copied."""
        from onnxruntime import OrtValue

        facts, rows = self._decoder.facts, len(self._lengths)
        binding = self._decoder.sessions["decode"].io_binding()
        binding.bind_ortvalue_output(facts.graph.outputs["logits"], OrtValue.ortvalue_from_numpy(self._logits[:rows]))
        for past, present, buffer in zip(facts.past, facts.present, self._buffers, strict=True):
            value = OrtValue.ortvalue_from_numpy(buffer[:rows])
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        return binding


@dataclass
class _Row:
    """One of the answers that are being written."""

    place: int  # among all that were asked for
    view: View
    begun: Begun
    writing: Writing
    clock: Clock

    def answer(self) -> Answer:
        self.writing.end()
        return self.begun.answer(self.writing.written, self.clock.since(self.view.timings))


def answer_many(runtime: Runtime, views: Iterable[View], requests: Sequence[Request]) -> list[Answer]:
    """Answer each request, which was checked, about the view beside it, in their order: as one by one.

    A view is taken when its turn comes. They are written together where the decoder takes several, unless for one of
    them nothing is written (`choices`, one token) or there is a deadline: that is each answer's own, and would run
    while others are read.
    """
    asked = zip(requests, views, strict=False)  # one view may serve all requests
    alone = any(r.choices or r.max_new_tokens == 1 or r.deadline_ms is not None for r in requests)
    positions = max(map(runtime.positions, set(requests)), default=1)
    most = 1 if alone or not runtime.decoder.takes_several else _most(runtime.decoder, positions)
    if most == 1:
        return [runtime.stream(view, request, Clock(request.deadline_ms)).read() for request, view in asked]
    return _written_together(runtime, asked, Together(runtime.decoder, most, positions), most)


def _most(decoder: Decoder, positions: int) -> int:
    """How many conversations are written together."""
    facts = decoder.facts
    one = len(facts.past) * facts.kv_heads * positions * facts.head_dim * np.dtype(facts.cache_dtype).itemsize
    return max(1, min(_MOST, _MOST_BYTES // one))


def _written_together(
    runtime: Runtime, asked: Iterable[tuple[Request, View]], together: Together, most: int
) -> list[Answer]:
    """Up to `most` at a time: a new one begins where one has ended."""
    waiting = enumerate(asked)
    answers: dict[int, Answer] = {}
    rows: list[_Row] = []
    while True:
        while len(rows) < most and (following := next(waiting, None)):
            row = _begin(runtime, *following, together)
            if row.writing.ended:
                answers[row.place] = row.answer()
            else:
                rows.append(row)
        if not rows:
            return [answers[place] for place in sorted(answers)]
        _step(runtime, rows, together)
        for at in reversed(range(len(rows))):  # the last row, which takes a free place, has been looked at before
            if not rows[at].writing.goes_on():
                answers[rows[at].place] = rows[at].answer()
                together.drop(at)
                rows[at] = rows[-1]
                rows.pop()


def _begin(runtime: Runtime, place: int, asked: tuple[Request, View], together: Together) -> _Row:
    """Read a question up to its first token, and keep its conversation if the answer goes on."""
    (request, view), clock, stop = asked, Clock(), Stop()
    writing = Writing(Task(request, runtime.prompt.text, runtime.manifest.stop_ids), clock, stop)
    with runtime.begin(view, request, clock, stop) as begun:
        assert begun.read is not None  # nobody stops it
        conversation, logits = begun.read
        writing.take(logits)
        if writing.goes_on():
            together.add(conversation.cache)
    return _Row(place, view, begun, writing, clock)


def _step(runtime: Runtime, rows: Sequence[_Row], together: Together) -> None:
    """One more token of every answer. Each waits for all, so the time counts in full for each."""
    started = time.perf_counter()
    logits = together.step(runtime.table.rows([row.writing.token for row in rows]))  # (B, D) -> (B, V)
    ms = 1000 * (time.perf_counter() - started)
    for row, of_row in zip(rows, logits, strict=True):
        row.clock.add("decode", ms)
        row.writing.take(of_row)
