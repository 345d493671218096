"""Answers of several conversations at one decoder, against the same ones alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from export.runtime import MvlmError, Runtime
from export.runtime.answer import Answer, Clock, Stop
from export.runtime.backends.onnx import Decoder
from export.runtime.backends.together import Together
from export.runtime.chat import Chats
from export.runtime.decode.desk import Desk, Pace
from export.runtime.decode.shared import Shared
from export.runtime.messages import read_turns
from export.runtime.request import request_of
from export.runtime.turn_scales import Conversed
from tests.support.bundles import bundle_for, pool_bundle
from tests.support.tiny import QUESTIONS


@dataclass
class Heard:
    """What one answer told."""

    stopped: bool = False
    text: str = ""
    tokens: int = 0
    answer: Answer | None = None
    error: BaseException | None = None

    def put(self, piece):
        self.text += piece.text

    def token(self):
        self.tokens += 1

    def ended(self, answer):
        self.answer = answer

    def failed(self, error):
        self.error = error


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.load(pool_bundle().bundle, threads=1)


@pytest.fixture(autouse=True)
def fresh(runtime):
    runtime.chats = Chats(runtime)


@pytest.fixture
def at_once(monkeypatch) -> list[int]:
    """How many conversations each step of several read on."""
    rows, step = [], Together.step
    monkeypatch.setattr(Together, "step", lambda self, x: rows.append(len(x)) or step(self, x))
    return rows


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """How many positions each step of one conversation read."""
    lengths, step = [], Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, x, cache: lengths.append(len(x)) or step(self, x, cache))
    return lengths


def talk(number: int, words: int = 0) -> list[dict]:
    picture = pool_bundle().picture(number % 6)
    text = f"{QUESTIONS[number % 4]} {number} {'word ' * words}"
    return [
        {"role": "system", "content": f"You are brief, {number}."},
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]},
    ]


def prepared(runtime, messages, scale=9, **options):
    turns = [Conversed(turn, tuple(map(runtime.look, turn.pictures))) for turn in read_turns(messages)]
    request = request_of(turns[-1].turn.text, scale, options)
    return runtime.chats.prepare(turns, request, Clock(request.deadline_ms))


def sit(desk, runtime, messages, **options) -> Heard:
    heard = Heard()
    desk.sit(prepared(runtime, messages, **options).steps(Stop()), heard)
    return heard


def desk_of(runtime, **more) -> Desk:
    return Desk(runtime.decoder, runtime.table.rows, **more)


def alone(runtime, messages, **options) -> Answer:
    """The same by a runtime that remembers nothing."""
    runtime.chats = Chats(runtime)
    return runtime.chat(messages, 9, **options)


def same(heard: Heard, wanted: Answer) -> None:
    assert heard.error is None
    assert heard.answer.token_ids == wanted.token_ids
    assert (heard.text, heard.answer.text, heard.answer.finish) == (wanted.text, wanted.text, wanted.finish)
    assert heard.answer.confidence == pytest.approx(wanted.confidence, rel=1e-3)


@pytest.mark.parametrize("precision", [None, "int4", "prefill=int8,decode=int4"])
@pytest.mark.parametrize("several", [True, False])
def test_those_who_come_and_go_get_what_they_get_alone(precision, several, at_once):
    """Lengths differ, so that they end one by one, and each that comes joins those that write, if any may."""
    made = bundle_for(pool_bundle(), "ort-cpu", precision) if precision else pool_bundle()
    runtime = Runtime.load(made.bundle, threads=1)
    assert runtime.decoder.takes_several
    runtime.decoder.takes_several = several
    asked = [(talk(number, 20 * (number % 3)), {"max_new_tokens": 9 + 5 * (number % 4)}) for number in range(10)]
    wanted = [alone(runtime, messages, **options) for messages, options in asked]
    desk, got, waiting = desk_of(runtime, most=4, stall_ms=1e-6), [], list(asked)
    runtime.chats = Chats(runtime)
    while len(desk) or waiting:
        if waiting and len(desk) < 6:
            messages, options = waiting.pop(0)
            got.append(sit(desk, runtime, messages, **options))
        desk.turn()
    for heard, answer in zip(got, wanted, strict=True):
        same(heard, answer)
        assert heard.tokens == len(answer.token_ids) + (answer.finish == "stop")
    assert bool(at_once) == several
    assert max(at_once, default=1) <= 4


def test_what_was_written_together_is_not_read_again(runtime):
    desk = desk_of(runtime)
    heard = [sit(desk, runtime, talk(number), max_new_tokens=6) for number in range(3)]
    while len(desk):
        desk.turn()
    for number, one in enumerate(heard):
        said = {"role": "assistant", "content": one.answer.text}
        more = [*talk(number), said, {"role": "user", "content": "why?"}]
        again = runtime.chat(more, 9, max_new_tokens=4)
        assert again.token_ids == alone_of(runtime, more).token_ids
        assert again.new_tokens < again.prompt_tokens / 2


def alone_of(runtime, messages) -> Answer:
    return Runtime.load(runtime.manifest.folder, threads=1).chat(messages, 9, max_new_tokens=4)


def test_one_caller_alone_stays_in_a_cache_of_its_own(runtime, at_once, read):
    desk = desk_of(runtime)
    heard = sit(desk, runtime, talk(0), max_new_tokens=5)
    while len(desk):
        desk.turn()
    assert at_once == []
    assert read == [heard.answer.prompt_tokens, 1, 1, 1, 1]


def test_prompts_are_read_in_pieces_while_others_write(runtime, read):
    desk = desk_of(runtime, stall_ms=1e-6)  # the shortest pieces that there are
    first = sit(desk, runtime, talk(0), max_new_tokens=30)
    desk.turn()
    assert read[0] > 30  # nobody is kept waiting by the first: it is read whole
    read.clear()
    second = sit(desk, runtime, talk(1, words=30), max_new_tokens=2)
    while second.answer is None:
        before = first.tokens
        desk.turn()
        assert first.answer is not None or first.tokens == before + 1
    pieces = [length for length in read if length > 1]
    assert sum(pieces) == second.answer.prompt_tokens
    assert set(pieces[:-1]) <= {15, 16, 31, 32}
    assert len(pieces) > 3


def test_a_precision_that_looks_at_a_whole_piece_reads_it_whole(read):
    """Then smaller pieces would be another prompt: greedy answers stay what they are alone."""
    runtime = Runtime.load(bundle_for(pool_bundle(), "ort-cpu", "prefill=int8,decode=int4").bundle, threads=1)
    assert runtime.decoder.takes_several
    assert not runtime.decoder.reads_by_row
    desk = desk_of(runtime, stall_ms=1e-6)
    sit(desk, runtime, talk(0), max_new_tokens=20)
    desk.turn()
    read.clear()
    second = sit(desk, runtime, talk(1, words=30), max_new_tokens=1)
    desk.turn()
    assert read[0] == second.answer.prompt_tokens


def test_the_pace_follows_what_was_measured():
    pace = Pace(100)
    first = pace.positions
    pace.took(64, 64)
    assert pace.positions == 100 > first
    pace.took(10, 100)
    assert pace.positions == int(100 / 5.5)
    for _ in range(10):
        pace.took(10, 1000)
    assert pace.positions == 16


def test_memory_bounds_how_many_write_together(runtime, at_once):
    """Those that find no room, or grow out of it, go on in caches of their own; the answers are the same."""
    facts = runtime.decoder.facts
    a_position = len(facts.past) * facts.kv_heads * facts.head_dim * 4
    for rows in (2, 3):
        asked = [talk(number, words=number) for number in range(4)]
        wanted = [alone(runtime, messages, max_new_tokens=6) for messages in asked]
        desk = desk_of(runtime)
        desk._shared = Shared(runtime.decoder, runtime.table.rows, most_bytes=rows * 256 * a_position)
        runtime.chats = Chats(runtime)
        at_once.clear()
        got = [sit(desk, runtime, messages, max_new_tokens=6) for messages in asked]
        while len(desk):
            desk.turn()
        for heard, answer in zip(got, wanted, strict=True):
            same(heard, answer)
        assert max(at_once) == rows


def test_rows_grow_with_their_answers(runtime, monkeypatch, at_once):
    from export.runtime.decode import shared

    monkeypatch.setattr(shared, "_ROUND_UP", 8)
    asked = [talk(number) for number in range(3)]
    wanted = [alone(runtime, messages, max_new_tokens=30) for messages in asked]
    runtime.chats, desk = Chats(runtime), desk_of(runtime)
    got = [sit(desk, runtime, messages, max_new_tokens=30) for messages in asked]
    while len(desk):
        desk.turn()
    for heard, answer in zip(got, wanted, strict=True):
        same(heard, answer)
    assert max(at_once) == 3


@pytest.mark.parametrize("error", [MvlmError("no memory"), KeyError("a fault of ours")])
def test_an_engine_that_fails_ends_those_who_write_and_no_others(runtime, monkeypatch, error):
    desk = desk_of(runtime, stall_ms=1e-6)
    writing = [sit(desk, runtime, talk(number), max_new_tokens=20) for number in range(2)]
    for _ in range(10):
        desk.turn()
    reading = sit(desk, runtime, talk(2, words=30), max_new_tokens=4)

    def fails(*_):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(Together, "step", fails)
        desk.turn()
    assert [heard.error for heard in writing] == [error, error]
    while len(desk):
        desk.turn()
    same(reading, alone(runtime, talk(2, words=30), max_new_tokens=4))


def test_an_engine_that_fails_while_it_reads_ends_that_one(runtime, monkeypatch):
    desk = desk_of(runtime)
    heard = sit(desk, runtime, talk(0), max_new_tokens=3)
    with monkeypatch.context() as broken:
        broken.setattr(Decoder, "step", lambda *_: 1 / 0)
        desk.turn()
    assert isinstance(heard.error, ZeroDivisionError)
    assert len(desk) == 0
    assert runtime.chat(talk(0), 9, max_new_tokens=3).new_tokens > 1


def test_a_caller_who_goes_while_the_prompt_is_read_leaves_what_was_read(runtime):
    desk = desk_of(runtime, stall_ms=1e-6)
    sit(desk, runtime, talk(0), max_new_tokens=40)
    desk.turn()
    goes = sit(desk, runtime, talk(1, words=30), max_new_tokens=3)
    desk.turn()
    goes.stopped = True
    desk.turn()
    assert goes.error.code == "closed"
    again = runtime.chat(talk(1, words=30), 9, max_new_tokens=3)
    assert 1 < again.new_tokens < again.prompt_tokens


def test_several_answers_to_one_question_read_it_once(runtime, read):
    request = {"temperature": 1.0, "max_new_tokens": 8}
    seeds = [runtime.chat(talk(0), 9, seed=5 + number, **request) for number in range(3)]
    runtime.chats, desk = Chats(runtime), desk_of(runtime)
    read.clear()
    heard = [Heard() for _ in range(3)]
    for one, steps in zip(heard, prepared(runtime, talk(0), seed=5, **request).several(3, Stop()), strict=True):
        desk.sit(steps, one)
    while len(desk):
        desk.turn()
    assert [one.answer.token_ids for one in heard] == [answer.token_ids for answer in seeds]
    assert len({answer.token_ids for answer in seeds}) > 1
    assert [one.answer.new_tokens for one in heard] == [seeds[0].prompt_tokens, 1, 1]
