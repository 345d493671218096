"""What is asked within a time: deadlines, and escalation to a finer scale; against asking there at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from export.runtime import MvlmError, Runtime
from export.runtime.backends.onnx import Decoder, Device
from export.runtime.decode.sampling import first_margin
from export.runtime.routing.costs import CostTable
from export.runtime.routing.router import Choice, Terms
from tests.runtime.test_conversation import slow_logits
from tests.support.tiny import QUESTIONS, SCALES

QUESTION = QUESTIONS[0]


@pytest.fixture(scope="module")
def view(runtime, made):
    return runtime.look(made.picture(0))


def test_terms_reach_the_router(view):
    assert view.ask(QUESTION, cap=4, price=0, max_new_tokens=1).num_visual_tokens <= 4
    assert view.ask(QUESTION, least_probability=0.0, max_new_tokens=1).num_visual_tokens == 1
    assert view.choose(QUESTION, budget=20).terms == Terms(budget=20)
    with pytest.raises(MvlmError, match=r"cap of 0\.5 tokens allows no scale"):
        view.ask(QUESTION, cap=0.5)
    with pytest.raises(MvlmError, match="price and budget cannot both"):
        view.ask(QUESTION, price=1, budget=9)


@pytest.fixture
def measured(made) -> Runtime:
    """A runtime that knows what scales cost, as `mvlm bench` would have left it."""
    table = CostTable(
        costs={m: 10.0 + m for m in SCALES}, floor=1, answer_tokens=1, look_ms=5.0,
        first_token_ms={m: 1000.0 * m for m in SCALES}, token_ms=dict.fromkeys(SCALES, 1.0),
    )  # fmt: skip
    loaded = Runtime.load(made.bundle, threads=1)
    return Runtime(loaded.manifest, Device(threads=1), table)


def test_a_deadline_leaves_the_scales_that_answer_in_time(measured, made):
    view = measured.look(made.picture(0))

    def cap(**options) -> float | None:
        return view.choose(QUESTION, price=0, **options).terms.cap

    assert cap() is None
    assert cap(deadline_ms=9_500) == measured.costs.costs[9]
    assert cap(deadline_ms=1_500) == measured.costs.costs[1]
    assert cap(deadline_ms=1e9) == measured.costs.costs[144]
    assert cap(deadline_ms=1e9, cap=15) == 15
    assert view.choose(QUESTION, price=0, deadline_ms=1_500).scale == 1


def test_a_deadline_that_cannot_be_met_is_refused_before_the_model_runs(measured, made, monkeypatch):
    view = measured.look(made.picture(0))
    monkeypatch.setattr(Decoder, "step", lambda *_: pytest.fail("no work was asked for"))
    with pytest.raises(MvlmError, match="the cheapest scale takes 1000 ms here") as caught:
        view.ask(QUESTION, deadline_ms=1)
    assert caught.value.code == "deadline"


def test_a_deadline_without_measured_costs_says_what_to_run(view):
    with pytest.raises(MvlmError, match="mvlm bench") as caught:
        view.ask(QUESTION, deadline_ms=100)
    assert caught.value.code == "no-costs"


def test_decoding_stops_in_time_and_says_so(runtime, view, monkeypatch):
    monkeypatch.setattr(runtime, "manifest", replace(runtime.manifest, stop_ids=frozenset()))
    answer = view.ask(QUESTION, 9, max_new_tokens=400, deadline_ms=40)
    assert answer.finish == "deadline"
    assert 1 <= len(answer.token_ids) < 400
    assert answer.text
    assert view.ask(QUESTION, 9, max_new_tokens=400, deadline_ms=1).finish == "deadline"


# An escalation


@pytest.fixture
def escalate(runtime, monkeypatch):
    """A rule that always wants the finest scale after a look at 4 tokens, and what it was told."""
    told = []

    def rule(choice, margin, *, keeps_cache, **_):
        told.append((choice.scale, margin, keeps_cache))
        return replace(choice, scale=144, reason="144 tokens: looked again")

    monkeypatch.setattr(type(runtime.router), "looks_again", True)
    monkeypatch.setattr(runtime.router, "escalate", rule)
    monkeypatch.setattr(
        runtime.router, "choose",
        lambda *_: Choice(4, dict.fromkeys(SCALES, 0.5), "4 tokens", 4.0, 0.1, 1.0, False, Terms()),
    )  # fmt: skip
    return told


def test_an_escalation_answers_as_going_there_at_once(runtime, made, escalate):
    view = runtime.look(made.picture(3))
    answer = view.ask(QUESTION, max_new_tokens=16)
    once = runtime.look(made.picture(3)).ask(QUESTION, 144, max_new_tokens=16)
    assert answer.token_ids == once.token_ids
    assert (answer.num_visual_tokens, answer.escalated) == (144, 4)
    assert answer.reason == "144 tokens: looked again"
    margin = first_margin(slow_logits(runtime, view, QUESTION, 4))
    assert escalate == [(4, pytest.approx(margin, rel=1e-3), runtime.manifest.family != "pool")]


def test_where_the_rule_is_content_there_is_one_look(runtime, made, escalate, monkeypatch):
    monkeypatch.setattr(runtime.router, "escalate", lambda *_, **__: None)
    answer = runtime.look(made.picture(3)).ask(QUESTION, max_new_tokens=4)
    assert (answer.num_visual_tokens, answer.escalated) == (4, None)


def test_a_rule_that_did_not_pay_is_not_asked(runtime, view, monkeypatch):
    monkeypatch.setattr(type(runtime.router), "looks_again", False)
    monkeypatch.setattr(runtime.router, "escalate", lambda *_, **__: pytest.fail("it does not pay"))
    view.ask(QUESTION, max_new_tokens=1)


# What is refused
