"""Answers that are written together, against the same ones written one by one."""

from __future__ import annotations

import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest

from export.runtime import MvlmError, Runtime
from export.runtime.backends import together as backend
from export.runtime.backends.onnx import Cache, Decoder, Device
from export.runtime.backends.together import Together
from export.runtime.decode import batch
from export.runtime.request import Request
from export.runtime.routing.router import Choice, Terms
from tests.export.test_decoder import DIALECTS, random_model, written
from tests.support.bundles import bundle_for, pool_bundle
from tests.support.tiny import QUESTIONS, SCALES

QUESTION = QUESTIONS[0]
LONG = {"max_new_tokens": 12}


@pytest.fixture
def at_once(monkeypatch) -> list[int]:
    """How many conversations each step of several read on."""
    rows = []
    step = Together.step
    monkeypatch.setattr(Together, "step", lambda self, x: rows.append(len(x)) or step(self, x))
    return rows


@pytest.fixture
def endless(runtime, monkeypatch) -> None:
    """No token ends an answer."""
    monkeypatch.setattr(runtime, "manifest", replace(runtime.manifest, stop_ids=frozenset()))


def same(many, alone) -> None:
    assert len(many) == len(alone)
    for one, other in zip(many, alone, strict=True):
        assert one.confidence == pytest.approx(other.confidence, rel=1e-3)
        plain = {"timings": {}, "confidence": 0.0}
        assert replace(one, **plain) == replace(other, **plain)


# Steps


@pytest.mark.parametrize("name", ["qwen3", "llama, one kv head for all", "llama, narrow heads", "smollm3"])
def test_a_step_of_several_is_a_step_of_each(tmp_path, name):
    model = random_model(name)
    decoder, rng = written(model, tmp_path), np.random.default_rng(0)

    def drawn(length: int):
        return rng.standard_normal((length, model.config.hidden_size), np.float32)

    caches = [Cache(decoder, 64) for _ in range(3)]
    for cache, length in zip(caches, (5, 17, 1), strict=True):
        decoder.step(drawn(length), cache)
    several = Together(decoder, 4, 64)
    rows: list[Cache] = []

    def step() -> None:
        x = drawn(len(rows))
        wanted = np.stack([decoder.step(x[i : i + 1], cache) for i, cache in enumerate(rows)])
        np.testing.assert_allclose(several.step(x), wanted, atol=2e-5 * np.abs(wanted).max())

    def add(cache: Cache) -> None:
        several.add(cache)
        rows.append(cache)

    def drop(row: int) -> None:
        several.drop(row)
        rows[row] = rows[-1]
        rows.pop()

    add(caches[0])
    step()
    add(caches[1])
    add(caches[2])
    step()
    step()
    drop(0)  # the shortest of all takes the place of a longer one
    step()
    drop(1)
    step()
    late = Cache(decoder, 64)
    decoder.step(drawn(30), late)
    add(late)
    step()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_decoder_says_whether_it_takes_several(tmp_path, dialect):
    assert written(random_model("qwen3"), tmp_path, DIALECTS[dialect]).takes_several == (dialect == "fused")


@pytest.mark.parametrize("precision", ["float32", "int8", "int4", "int4-fast", "prefill=int8,decode=int4"])
def test_every_precision_answers_the_same_together(precision, at_once):
    """Where one conversation could change what another gives, they are written one by one (`Product.by_row`)."""
    made = bundle_for(pool_bundle(), "ort-cpu", precision)
    runtime = Runtime.load(made.bundle, threads=1)
    pictures = [made.picture(i) for i in range(6)]
    alone = [runtime.ask(picture, QUESTION, 9, **LONG) for picture in pictures]
    same(runtime.ask_many(pictures, QUESTION, 9, **LONG), alone)
    assert bool(at_once) == runtime.decoder.takes_several == (precision not in ("int8", "int4-fast"))


# Answers


def test_several_pictures_one_question(runtime, made, at_once):
    pictures = [made.picture(i) for i in range(6)]
    alone = [runtime.ask(picture, QUESTION, 36, **LONG) for picture in pictures]
    mixed = [*pictures[:3], *map(runtime.look, pictures[3:])]
    same(runtime.ask_many(mixed, QUESTION, 36, **LONG), alone)
    assert at_once
    assert at_once[0] == 6
    assert sum(at_once) == sum(len(answer.token_ids) - (answer.finish == "length") for answer in alone)


def test_several_questions_about_one_picture_which_is_read_once(runtime, made, monkeypatch):
    questions = [*QUESTIONS, *(f"{question} really?" for question in QUESTIONS)]
    alone = [runtime.look(made.picture(0)).ask(question, 144, **LONG) for question in questions]
    read = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, x, cache: read.append(len(x)) or step(self, x, cache))
    same(runtime.look(made.picture(0)).ask_many(questions, 144, **LONG), alone)
    assert sum(length > 144 for length in read) == 1


@pytest.mark.parametrize("most", [2, 3])
def test_more_than_fit_take_the_places_of_those_that_ended(runtime, made, monkeypatch, at_once, most):
    monkeypatch.setattr(batch, "_MOST", most)
    asked = [made.picture(i % 6) for i in range(13)]
    whole = [runtime.ask(picture, QUESTION, 9, **LONG).token_ids for picture in asked[:3]]
    some = frozenset(ids[length] for length, ids in enumerate(whole, 1))
    monkeypatch.setattr(runtime, "manifest", replace(runtime.manifest, stop_ids=some))
    alone = [runtime.ask(picture, QUESTION, 9, **LONG) for picture in asked]
    assert len({len(answer.token_ids) for answer in alone}) > 1
    same(runtime.ask_many(asked, QUESTION, 9, **LONG), alone)
    assert max(at_once) == most


def test_the_router_chooses_for_each(runtime, made, at_once):
    view, chosen = runtime.look(made.picture(0)), set()
    for options in ({}, {"price": 0.0}, {"cap": 9}, {"least_probability": 0.5}):
        alone = [view.ask(question, **LONG, **options) for question in QUESTIONS]
        at_once.clear()
        same(view.ask_many(QUESTIONS, **LONG, **options), alone)
        assert max(at_once) == len(QUESTIONS)
        chosen |= {answer.num_visual_tokens for answer in alone}
    assert len(chosen) > 1


def test_drawn_answers_and_stop_texts(runtime, made):
    pictures = [made.picture(i) for i in range(5)]
    stop = runtime.ask(pictures[0], QUESTION, 9, **LONG).text[4:7]
    for options in ({"temperature": 1.0, "seed": 3, "top_p": 0.9}, {"stop": stop}, {"stop": [stop, "e"]}):
        alone = [runtime.ask(picture, QUESTION, 9, **LONG, **options) for picture in pictures]
        same(runtime.ask_many(pictures, QUESTION, 9, **LONG, **options), alone)


def test_an_escalation_is_taken_by_those_that_need_it(runtime, made, monkeypatch):
    def rule(choice, margin, *, keeps_cache, **_):
        return replace(choice, scale=144, reason="looked again") if margin < middle else None

    cheap = Choice(4, dict.fromkeys(SCALES, 0.5), "4 tokens", 4.0, 0.1, 1.0, False, Terms())
    pictures, margins = [made.picture(i) for i in range(6)], []
    monkeypatch.setattr(type(runtime.router), "looks_again", True)
    monkeypatch.setattr(runtime.router, "choose", lambda *_: cheap)
    monkeypatch.setattr(runtime.router, "escalate", lambda choice, margin, **_: margins.append(margin))
    runtime.ask_many(pictures, QUESTION, **LONG)
    middle = float(np.median(margins))
    monkeypatch.setattr(runtime.router, "escalate", rule)
    alone = [runtime.ask(picture, QUESTION, **LONG) for picture in pictures]
    assert [answer.escalated for answer in alone].count(4) == 3
    same(runtime.ask_many(pictures, QUESTION, **LONG), alone)


def test_one_and_none(runtime, made):
    assert runtime.ask_many([], QUESTION) == []
    assert runtime.look(made.picture(0)).ask_many([]) == []
    same(runtime.ask_many([made.picture(0)], QUESTION, 9, **LONG), [runtime.ask(made.picture(0), QUESTION, 9, **LONG)])


def test_what_writes_nothing_is_asked_one_by_one(runtime, made, at_once):
    pictures = [made.picture(i) for i in range(3)]
    for options in ({"choices": ["red", "blue"]}, {"max_new_tokens": 1}):
        alone = [runtime.ask(picture, QUESTION, 9, **options) for picture in pictures]
        same(runtime.ask_many(pictures, QUESTION, 9, **options), alone)
    assert not at_once


def test_a_deadline_is_each_answers_own(runtime, made, at_once, endless, monkeypatch):
    views, step = [runtime.look(made.picture(i)) for i in range(3)], Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, x, cache: time.sleep(0.002) or step(self, x, cache))
    answers = runtime.ask_many(views, QUESTION, 9, deadline_ms=100, max_new_tokens=400)
    answers += views[0].ask_many(QUESTIONS, 9, deadline_ms=100, max_new_tokens=400)
    assert {answer.finish for answer in answers} == {"deadline"}
    assert all(len(answer.token_ids) > 1 for answer in answers)
    assert not at_once


def test_memory_bounds_how_many_are_written_at_once(runtime, made, at_once, monkeypatch):
    pictures = [made.picture(i) for i in range(6)]
    positions = runtime.positions(Request(QUESTION, 9, **LONG))
    facts = runtime.decoder.facts
    one = len(facts.past) * facts.kv_heads * facts.head_dim * positions * 4
    for fit, most in ((3.5, 3), (1.5, 0), (0.5, 0)):
        at_once.clear()
        monkeypatch.setattr(batch, "_MOST_BYTES", int(fit * one))
        runtime.ask_many(pictures, QUESTION, 9, **LONG)
        assert max(at_once, default=0) == most


def test_a_decoder_of_an_older_mvlm_takes_one(tmp_path):
    """Its decoder fixes one conversation in every shape; nothing else about it differs."""
    facts = written(random_model("qwen3"), tmp_path).facts
    graph = onnx.load(tmp_path / "decoder.onnx", load_external_data=False)
    for value in (*graph.graph.input, *graph.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == "rows":
                axis.dim_value = 1
    onnx.save(graph, tmp_path / "decoder.onnx")
    assert not Decoder(tmp_path / "decoder.onnx", facts, Device(threads=1)).takes_several


# What goes wrong, and what is left behind


def test_threads_that_ask_many_at_once(runtime, made):
    pictures = [made.picture(i) for i in range(6)]
    alone = {m: [runtime.ask(picture, QUESTION, m, **LONG) for picture in pictures] for m in SCALES}
    with ThreadPoolExecutor(4) as pool:
        for m, many in pool.map(lambda m: (m, runtime.ask_many(pictures, QUESTION, m, **LONG)), SCALES * 3):
            same(many, alone[m])


def test_every_question_is_checked_before_any_work(runtime, made, monkeypatch):
    view = runtime.look(made.picture(0))
    monkeypatch.setattr(Decoder, "step", lambda *_: pytest.fail("no work was asked for"))
    with pytest.raises(MvlmError, match="is empty"):
        view.ask_many([QUESTION, " "])
    with pytest.raises(MvlmError, match="ask in fewer words"):
        view.ask_many([QUESTION, "why? " * 2000])
    with pytest.raises(MvlmError, match="no scale 5"):
        runtime.ask_many([view], QUESTION, 5)


def test_an_engine_that_fails_is_one_error_and_leaves_nothing(runtime, made, monkeypatch):
    alive: weakref.WeakSet = weakref.WeakSet()
    init = Together.__init__
    monkeypatch.setattr(Together, "__init__", lambda self, *rest: alive.add(self) or init(self, *rest))
    pictures = [made.picture(i) for i in range(3)]
    wanted = runtime.ask_many(pictures, QUESTION, 9, **LONG)
    with monkeypatch.context() as broken:
        broken.setattr(backend, "step_inputs", lambda *_, **__: {"seqlens_k": np.zeros((1, 1, 1))})
        with pytest.raises(MvlmError) as caught:
            runtime.ask_many(pictures, QUESTION, 9, **LONG)
    assert caught.value.code == "engine-failed"
    with pytest.raises(MvlmError) as caught:
        runtime.ask_many([*pictures, made.rows / "rows.jsonl"], QUESTION, 9, **LONG)
    assert caught.value.code == "bad-picture"
    same(runtime.ask_many(pictures, QUESTION, 9, **LONG), wanted)
    del caught
    gc.collect()
    assert not alive


def test_a_step_counts_in_full_for_each_that_waited(runtime, made, endless, monkeypatch):
    step, pictures = Together.step, [made.picture(i) for i in range(3)]
    monkeypatch.setattr(Together, "step", lambda self, x: time.sleep(0.005) or step(self, x))
    for answer in runtime.ask_many(pictures, QUESTION, 9, **LONG):
        assert len(answer.token_ids) == 12
        assert answer.timings["decode_ms"] >= 11 * 5
