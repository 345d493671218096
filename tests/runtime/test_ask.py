"""The ways to ask: streams, async, choices, sampling, stop texts, deadlines, escalations; against the plain one."""

from __future__ import annotations

import asyncio
import math
from dataclasses import fields, replace
from typing import get_type_hints

import numpy as np
import pytest
from PIL import Image

from export.runtime import MvlmError, Runtime
from export.runtime.backends.onnx import Cache, Decoder
from export.runtime.decode.sampling import Sampler, log_softmax
from export.runtime.request import Options, Request
from tests.runtime.test_conversation import slow_logits
from tests.support.tiny import QUESTIONS

QUESTION = QUESTIONS[0]


@pytest.fixture(scope="module")
def view(runtime, made):
    return runtime.look(made.picture(0))


def test_a_stream_is_the_answer_in_pieces(view):
    whole = view.ask(QUESTION, 36, max_new_tokens=20)
    with view.stream(QUESTION, 36, max_new_tokens=20) as stream:
        pieces = list(stream)
        assert stream.text == "".join(pieces) == whole.text
        assert len(pieces) > 3
    assert replace(stream.answer, timings={}) == replace(whole, timings={})


def test_a_stream_that_is_left_did_a_tokens_work_and_no_more(view, monkeypatch):
    steps = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, x, cache: steps.append(len(x)) or step(self, x, cache))
    stream = view.stream(QUESTION, 36, max_new_tokens=50)
    assert steps == []
    first = next(stream)
    done = len(steps)
    stream.stop()
    rest = list(stream)
    assert len(steps) <= done + 1
    assert stream.answer.finish == "stopped"
    assert stream.answer.text == stream.text == first + "".join(rest)


def test_a_stream_closed_before_its_start_did_nothing(view, monkeypatch):
    monkeypatch.setattr(Decoder, "step", lambda *_: pytest.fail("no work was asked for"))
    with view.stream(QUESTION, 36) as stream:
        pass
    assert stream.text == ""
    with pytest.raises(MvlmError, match="has not ended"):
        _ = stream.answer
    stopped = view.stream(QUESTION, 36)
    stopped.stop()
    assert list(stopped) == []
    assert stopped.answer.finish == "stopped"


def test_async_ways_give_the_same(view):
    whole = view.ask(QUESTION, 9, max_new_tokens=12)

    async def both():
        pieces = [piece async for piece in view.astream(QUESTION, 9, max_new_tokens=12)]
        answers = await asyncio.gather(*(view.aask(QUESTION, 9, max_new_tokens=12) for _ in range(3)))
        return "".join(pieces), answers

    text, answers = asyncio.run(both())
    assert text == whole.text
    assert {answer.token_ids for answer in answers} == {whole.token_ids}


def test_an_async_question_that_is_cancelled_stops(view, monkeypatch):
    steps = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, x, cache: steps.append(1) or step(self, x, cache))
    monkeypatch.setattr(view.runtime, "manifest", replace(view.runtime.manifest, stop_ids=frozenset()))

    async def cancelled():
        task = asyncio.ensure_future(view.aask(QUESTION, 9, max_new_tokens=400))
        while len(steps) < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())  # waits for its threads
    assert len(steps) < 300


def test_many_questions_and_many_pictures_answer_as_one_by_one(runtime, made, view):
    one_by_one = [view.ask(question, max_new_tokens=4).text for question in QUESTIONS]
    assert [answer.text for answer in view.ask_many(QUESTIONS, max_new_tokens=4)] == one_by_one
    pictures = [made.picture(i) for i in range(4)]
    views = [*pictures[:2], *map(runtime.look, pictures[2:])]
    answers = runtime.ask_many(views, QUESTION, 36, max_new_tokens=6)
    assert [a.token_ids for a in answers] == [
        runtime.ask(picture, QUESTION, 36, max_new_tokens=6).token_ids for picture in pictures
    ]
    with pytest.raises(MvlmError, match="is empty"):
        view.ask_many([QUESTION, " "])


def test_to_choose_is_to_ask_without_answering(view):
    for price in (0, 0.1, 1000):
        choice, answer = view.choose(QUESTION, price=price), view.ask(QUESTION, price=price, max_new_tokens=1)
        assert (choice.scale, choice.reason) == (answer.num_visual_tokens, answer.reason)


def test_confidence_is_the_product_of_the_tokens_probabilities(runtime, view):
    answer = view.ask(QUESTION, 9, max_new_tokens=3)
    assert answer.finish == "length"
    total, ids = 0.0, runtime.prompt.ids(QUESTION, 9, runtime.manifest.image_token_id)
    embeds = runtime.table.rows(ids)
    embeds[np.asarray(ids) == runtime.manifest.image_token_id] = runtime.visual_tokens(view.values, 9)[0]
    cache = Cache(runtime.decoder, len(ids) + 3)
    logits = runtime.decoder.step(embeds, cache)
    for token in answer.token_ids:
        total += log_softmax(logits)[token]
        logits = runtime.decoder.step(runtime.table.rows([token]), cache)
    assert answer.confidence == pytest.approx(math.exp(total), rel=1e-4)


# Choices


def slow_score(runtime: Runtime, view, m: int, choice: str, others: list[str]) -> float:
    """A choice's probability with every token read anew, both spellings, and the end where another choice goes on."""
    everything = [
        tuple(runtime.prompt.text_ids(text)) for other in others for text in (f" {other}", other)
    ]  # fmt: skip
    total = 0.0
    for ids in {tuple(runtime.prompt.text_ids(text)) for text in (f" {choice}", choice)}:
        prompt = runtime.prompt.ids(QUESTION, m, runtime.manifest.image_token_id)
        score = 0.0
        for n in range(len(ids) + 1):
            if n == len(ids) and not any(len(other) > n and other[:n] == ids for other in everything):
                break
            whole = [*prompt, *ids[:n]]
            embeds = runtime.table.rows(whole)
            place = np.asarray(whole) == runtime.manifest.image_token_id
            embeds[place] = runtime.visual_tokens(view.values, m)[0]
            scores = log_softmax(runtime.decoder.step(embeds, Cache(runtime.decoder, len(whole))))
            score += scores[ids[n]] if n < len(ids) else np.logaddexp.reduce(scores[sorted(runtime.manifest.stop_ids)])
        total += math.exp(score)
    return total


@pytest.mark.parametrize("choices", [["red", "blue"], ["4", "47", "day"], ["what colour", "what number", "what"]])
def test_choices_are_scored_as_when_every_token_is_read_anew(runtime, view, choices):
    answer = view.ask(QUESTION, 9, choices=choices)
    slow = np.array([slow_score(runtime, view, 9, choice, choices) for choice in choices])
    np.testing.assert_allclose(list(answer.choices.values()), slow / slow.sum(), rtol=1e-3)
    assert answer.text == choices[int(slow.argmax())]
    assert answer.confidence == max(answer.choices.values())
    assert list(answer.choices) == choices


def test_a_yes_or_no_is_one_prefill(runtime, made, monkeypatch):
    steps = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, x, cache: steps.append(len(x)) or step(self, x, cache))
    prompt, view = runtime.prompt, runtime.look(made.picture(0))
    monkeypatch.setattr(runtime, "_spellings", lambda choice: [tuple(prompt.text_ids(choice))])
    choices = [text for text in "abdeirsty" if len(prompt.text_ids(text)) == 1][:3]
    answer = view.ask(QUESTION, 4, choices=choices)
    assert len(choices) == 3
    assert len(steps) == 1
    assert sum(answer.choices.values()) == pytest.approx(1)


def test_scoring_leaves_the_cache_as_it_was(runtime, made):
    view = runtime.look(made.picture(0))
    view.ask(QUESTION, 4, choices=["4", "47", "what colour", "what number"])
    fresh = runtime.look(made.picture(0)).ask(QUESTION, 4, max_new_tokens=4)
    assert view.ask(QUESTION, 4, max_new_tokens=4).token_ids == fresh.token_ids


# Sampling and stopping


def test_sampling_is_repeatable_and_its_frequencies_are_the_models(runtime, view):
    drawn = [view.ask(QUESTION, 1, temperature=1.0, seed=seed, max_new_tokens=1).token_ids for seed in range(300)]
    again = [view.ask(QUESTION, 1, temperature=1.0, seed=seed, max_new_tokens=1).token_ids for seed in range(5)]
    assert drawn[:5] == again
    probability = np.exp(log_softmax(slow_logits(runtime, view, QUESTION, 1)))
    for stop_id in runtime.manifest.stop_ids:
        drawn = [ids or (stop_id,) for ids in drawn]
    counts = np.bincount([ids[0] for ids in drawn], minlength=len(probability))
    expected = 300 * probability
    # A statistic with as many degrees of freedom as tokens that are likely enough to be counted.
    common = expected > 5
    chi2 = (np.square(counts - expected)[common] / expected[common]).sum()
    assert chi2 < common.sum() + 5 * math.sqrt(2 * common.sum())
    assert len(set(drawn)) > 1


def test_top_p_keeps_the_head():
    logits = np.log(np.asarray([0.5, 0.3, 0.15, 0.05], np.float32))

    def seen(**options) -> set[int]:
        sampler = Sampler(Request("what?", temperature=1.0, seed=0, **options))
        return {sampler.pick(logits)[0] for _ in range(300)}

    assert seen() == {0, 1, 2, 3}
    assert seen(top_p=0.8) == {0, 1}
    assert seen(top_p=0.81) == {0, 1, 2}
    assert seen(top_p=1e-6) == {0}
    assert Sampler(Request("what?")).pick(logits) == (0, pytest.approx(0.5))


def test_a_tiny_temperature_is_greedy(view):
    greedy = view.ask(QUESTION, 9, max_new_tokens=6)
    assert view.ask(QUESTION, 9, max_new_tokens=6, temperature=1e-6, seed=1).token_ids == greedy.token_ids


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(view):
    whole = view.ask(QUESTION, 9, max_new_tokens=20).text
    stop = whole[4:7]
    answer = view.ask(QUESTION, 9, max_new_tokens=20, stop=stop)
    assert answer.text == whole[: whole.index(stop)].strip()
    assert answer.finish == "stop"
    assert len(answer.token_ids) < 20


def test_an_answer_says_what_ended_it(runtime, view, monkeypatch):
    whole = view.ask(QUESTION, 9, max_new_tokens=8)
    assert whole.finish == "length"
    monkeypatch.setattr(runtime, "manifest", replace(runtime.manifest, stop_ids=frozenset([whole.token_ids[3]])))
    assert view.ask(QUESTION, 9, max_new_tokens=8).finish == "stop"


# Terms and deadlines


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prise": 1}, "no option 'prise': did you mean price"),
        ({"zzz": 1}, "no option 'zzz': there are price"),
        ({"price": "1"}, "the price is '1': give a number"),
        ({"cap": float("nan")}, "the cap is nan"),
        ({"within": 2}, "give one from 0 to 1"),
        ({"deadline_ms": 0}, "the deadline is 0 ms"),
        ({"deadline_ms": "soon"}, "the deadline is 'soon' ms"),
        ({"max_new_tokens": 1.5}, "at most 1.5 tokens"),
        ({"temperature": -1}, "the temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"seed": -1}, "the seed is -1"),
        ({"seed": 1.0}, "the seed is 1.0"),
        ({"stop": [""]}, "stop holds something that is no text"),
        ({"stop": [3]}, "stop holds something that is no text"),
        ({"stop": 3}, "stop holds something that is no text"),
        ({"stop": ["a"] * 17}, "stop holds 17 texts"),
        ({"choices": ["yes"]}, "two or more"),
        ({"choices": ["yes", " yes"]}, "two or more"),
        ({"choices": ["yes", " "]}, "only white space"),
        ({"choices": list(map(str, range(65)))}, "choices holds 65 texts"),
        ({"choices": ["yes", "no " * 600]}, "needs .* positions"),
        ({"scale": 1.0}, "no scale 1.0"),
        ({"scale": [1]}, r"no scale \[1\]"),
    ],
)
def test_options_that_make_no_sense(view, options, says):
    with pytest.raises(MvlmError, match=says) as caught:
        view.ask(QUESTION, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.code != "bad-input"


def test_options_and_request_name_the_same():
    assert [field.name for field in fields(Request)] == ["question", "scale", *get_type_hints(Options)]


def test_order_of_channels(runtime, made):
    with Image.open(made.picture(0)) as opened:
        rgb = np.asarray(opened.convert("RGB"))
    answers = [
        runtime.look(array, order=order).ask(QUESTION, 36, max_new_tokens=6).token_ids
        for array, order in ((rgb, "rgb"), (rgb[:, :, ::-1], "bgr"))
    ]
    assert answers[0] == answers[1]
    with pytest.raises(MvlmError, match="no order of channels 'brg'"):
        runtime.look(rgb, order="brg")


def test_an_engine_that_fails_is_one_line(runtime, view):
    for broken in (np.zeros((3, 7), np.float32), np.zeros((0, view.words.shape[1]), np.float32)):
        with pytest.raises(MvlmError, match="the engine failed") as caught:
            runtime.decoder.step(broken, Cache(runtime.decoder, 8))
        assert caught.value.code == "engine-failed"
