"""What is read once is read right: shared prefixes and finer scales against reading everything anew."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from export.runtime import MvlmError, Runtime
from export.runtime.answer import Clock
from export.runtime.backends.onnx import Cache, Decoder
from export.runtime.decode.conversation import Conversation, Reader
from export.runtime.prompt import FixedIds, ImagePlace, Prompt, QuestionText
from tests.support.tiny import QUESTIONS, SCALES


def slow_logits(runtime: Runtime, view, question: str, m: int):
    """The whole prompt in one step of an empty cache."""
    ids = runtime.prompt.ids(question, m, runtime.manifest.image_token_id)
    embeds = runtime.table.rows(ids)
    embeds[np.asarray(ids) == runtime.manifest.image_token_id] = runtime.visual_tokens(view.values, m)[0]
    return runtime.decoder.step(embeds, Cache(runtime.decoder, len(ids)))


def conversation(runtime: Runtime, view) -> Conversation:
    return Conversation(runtime.reader, view.at)


def test_questions_behind_one_picture_read_as_each_alone(runtime, made):
    view = runtime.look(made.picture(0))
    shared = conversation(runtime, view)
    for question in (*QUESTIONS, QUESTIONS[0] * 3):
        for m in (36, 9, 144, 144):
            logits = shared.ask(question, m, 1, Clock())
            np.testing.assert_allclose(logits, slow_logits(runtime, view, question, m), rtol=1e-4, atol=1e-4)


def test_the_second_question_reads_only_itself(runtime, made, steps):
    view = runtime.look(made.picture(0))
    tails = [len(runtime.prompt.after(question)) for question in QUESTIONS[:2]]
    for question in QUESTIONS[:2]:
        view.ask(question, 36, max_new_tokens=1)
    assert steps == [36 + tails[0], tails[1]]


def test_a_finer_scale_appends_where_scales_are_nested(runtime, made, steps):
    view = runtime.look(made.picture(1))
    tail = len(runtime.prompt.after(QUESTIONS[0]))
    cheap, fine, cheap_again = (view.ask(QUESTIONS[0], m, max_new_tokens=1) for m in (9, 144, 9))
    nested = runtime.manifest.family in ("query", "nested_pool")
    assert steps == [9 + tail, (144 - 9 if nested else 144) + tail, tail]
    steps.clear()
    for answer, m in ((cheap, 9), (fine, 144), (cheap_again, 9)):
        assert answer.token_ids == runtime.look(made.picture(1)).ask(QUESTIONS[0], m, max_new_tokens=1).token_ids


def test_going_up_every_step_of_the_ladder_answers_as_going_there_at_once(runtime, made):
    view = runtime.look(made.picture(2))
    for m in SCALES:
        once = runtime.look(made.picture(2)).ask(QUESTIONS[1], m, max_new_tokens=12)
        assert view.ask(QUESTIONS[1], m, max_new_tokens=12).token_ids == once.token_ids


def test_the_lead_is_read_once_for_all_pictures(runtime, made, steps):
    assert runtime.reader.lead.used == len(runtime.prompt.lead) > 0
    runtime.look(made.picture(0)).ask(QUESTIONS[0], 1, max_new_tokens=1)
    assert steps == [1 + len(runtime.prompt.after(QUESTIONS[0]))]


def test_a_template_that_asks_before_it_shows_shares_nothing_and_is_right(runtime, made):
    parts = [FixedIds(tuple(runtime.prompt.lead)), QuestionText("", ""), ImagePlace(), FixedIds((5, 6))]
    prompt = Prompt(parts, runtime.prompt._tokenizer)
    assert not prompt.picture_first
    reader = Reader(runtime.decoder, runtime.table, prompt, nested=runtime.reader.nested)
    view = runtime.look(made.picture(0))
    talk = Conversation(reader, view.at)
    for question, m in ((QUESTIONS[0], 9), (QUESTIONS[1], 9), (QUESTIONS[1], 36)):
        ids = prompt.ids(question, m, -1)
        embeds = runtime.table.rows([max(i, 0) for i in ids])
        embeds[np.asarray(ids) == -1] = runtime.visual_tokens(view.values, m)[0]
        wanted = runtime.decoder.step(embeds, Cache(runtime.decoder, len(ids)))
        np.testing.assert_allclose(talk.ask(question, m, 1, Clock()), wanted, rtol=1e-4, atol=1e-4)


def test_two_threads_on_one_picture_get_a_cache_each(runtime, made):
    view = runtime.look(made.picture(0))
    with view.shelf.borrow(9) as one, view.shelf.borrow(9) as other:
        assert one is not other
        one.ask(QUESTIONS[0], 9, 1, Clock())
        other.ask(QUESTIONS[1], 9, 1, Clock())
    with view.shelf.borrow(9) as again:
        assert again in (one, other)
        assert again.scale == 9


def test_a_failed_question_leaves_no_half_read_picture_behind(runtime, made, monkeypatch):
    view = runtime.look(made.picture(0))
    wanted = view.ask(QUESTIONS[0], 9, max_new_tokens=4).token_ids
    with monkeypatch.context() as broken:
        broken.setattr(Decoder, "step", lambda *_: (_ for _ in ()).throw(MvlmError("no memory")))
        with pytest.raises(MvlmError, match="no memory"):
            view.ask(QUESTIONS[0], 9)
    assert view.ask(QUESTIONS[0], 9, max_new_tokens=4).token_ids == wanted


@pytest.fixture
def caches(monkeypatch) -> weakref.WeakSet:
    """The caches that are alive."""
    alive: weakref.WeakSet = weakref.WeakSet()
    init = Cache.__init__

    def counted(self, *arguments) -> None:
        init(self, *arguments)
        alive.add(self)

    monkeypatch.setattr(Cache, "__init__", counted)
    return alive


def test_caches_are_bounded_whoever_asks(runtime, made, caches):
    view = runtime.look(made.picture(0))
    asked = [(question, m, length) for question in QUESTIONS for m in SCALES for length in (1, 80)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda one: view.ask(one[0], one[1], max_new_tokens=one[2]), asked))
    gc.collect()
    assert len(caches) <= (len(SCALES) if runtime.manifest.family == "pool" else 1)


def test_a_stream_that_is_dropped_frees_its_cache_with_its_view(runtime, made, caches):
    view = runtime.look(made.picture(0))
    stream = view.stream(QUESTIONS[0], 1, max_new_tokens=50)
    next(stream)
    assert len(caches) == 1
    del stream, view
    gc.collect()
    assert not caches
