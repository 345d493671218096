"""OpenAI's chat completions by OpenAI's own client: answers, streams, options, errors, models, the router's view."""

from __future__ import annotations

import json

import openai
import pytest

from tests.support.serving import body, data_url, serving
from tests.support.tiny import QUESTIONS, SCALES

QUESTION = QUESTIONS[0]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["mvlm-auto", *(f"mvlm-{m}" for m in SCALES)]


@pytest.mark.parametrize("scale", ["auto", 1, 36])
def test_an_answer(client, runtime, picture, scale):
    chat = body(picture, QUESTION, f"mvlm-{scale}", max_tokens=6)
    answered = client.chat.completions.create(**chat)
    answer = runtime.ask(picture, QUESTION, scale, max_new_tokens=6)
    assert answered.choices[0].message.content == answer.text
    assert answered.choices[0].finish_reason == "length"
    assert answered.mvlm["num_visual_tokens"] == answer.num_visual_tokens
    assert answered.mvlm["reason"] == answer.reason
    ids = runtime.prompt.ids(QUESTION, answer.num_visual_tokens, runtime.manifest.image_token_id)
    assert (answered.usage.prompt_tokens, answered.usage.completion_tokens) == (len(ids), 6)


def test_a_stream(client, runtime, picture):
    chat = body(picture, QUESTION, "mvlm-9", max_tokens=12, stream=True, stream_options={"include_usage": True})
    chunks = list(client.chat.completions.create(**chat))
    answer = runtime.ask(picture, QUESTION, 9, max_new_tokens=12)
    text = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(text) == answer.text
    assert sum(map(bool, text)) > 2
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-2].mvlm["num_visual_tokens"] == 9
    assert chunks[-1].usage.completion_tokens == 12


def test_the_scale_and_terms_in_the_body(client, runtime, picture):
    for ours, scale in (({"scale": 36}, 36), ({"price": 1000}, 1), ({"cap": 4, "price": 0}, None)):
        chat = body(picture, QUESTION, max_tokens=1)
        answered = client.chat.completions.create(**chat, extra_body={"mvlm": ours})
        assert answered.mvlm["num_visual_tokens"] in ([scale] if scale else [1, 4])
    picked = client.chat.completions.create(
        **body(picture, QUESTION), extra_body={"mvlm": {"choices": ["red", "blue"]}}
    )
    assert picked.choices[0].message.content in ("red", "blue")
    assert sum(picked.mvlm["choices"].values()) == pytest.approx(1)


def test_openais_own_options(client, picture):
    def ask(**options) -> str:
        return client.chat.completions.create(**body(picture, QUESTION, "mvlm-9"), **options).choices[0].message.content

    whole = ask(max_completion_tokens=16)
    assert ask(max_tokens=16, stop=whole[3:6]) == whole[: whole.index(whole[3:6])].strip()
    drawn = {ask(temperature=1.5, seed=seed, max_tokens=8) for seed in (1, 1, 2)}
    assert len(drawn) == 2
    assert ask(max_tokens=16, n=1, user="me", presence_penalty=0, tools=[], logprobs=False) == whole
    assert ask(max_tokens=16, temperature=1e-40) == whole  # too cold to draw anything but the likeliest


def test_an_answer_is_as_long_as_there_is_room_for(client, runtime, picture, endless):
    """What is asked for beyond that is what fits, as llama.cpp and vLLM have it."""
    room = runtime.manifest.max_length - runtime.reader.positions(QUESTION, 9, 0)
    for longest in ({}, {"max_tokens": -1}, {"max_tokens": 10**9}, {"max_completion_tokens": room}):
        answered = client.chat.completions.create(**body(picture, QUESTION, "mvlm-9", **longest))
        assert answered.usage.completion_tokens == room


def test_errors_are_openais(client, picture):
    with pytest.raises(openai.NotFoundError, match="no model 'mvlm-7'"):
        client.chat.completions.create(**body(picture, QUESTION, "mvlm-7"))
    with pytest.raises(openai.BadRequestError, match="cannot be read as a picture"):
        client.chat.completions.create(**body(b"no picture", QUESTION))
    with pytest.raises(openai.BadRequestError, match="cannot be read as a picture"):
        client.chat.completions.create(**body(b"no picture", QUESTION), stream=True)


def test_choose_shows_the_router_at_many_prices(served, runtime, picture):
    prices = [0, 0.1, 0.5, 1000, 1e38]
    asked = {"picture": data_url(picture), "question": QUESTION, "prices": prices}
    status, _, data = served.request("POST", "/v1/mvlm/choose", asked)
    value = json.loads(data)
    view = runtime.look(picture)
    assert status == 200
    assert value["choices"] == [view.choose(QUESTION, price=price).scale for price in prices]
    assert value["choices"][-1] == SCALES[0]  # no price is too high to be paid attention to
    assert value["probabilities"] == list(view.choose(QUESTION).probabilities.values())
    assert value["scales"] == list(SCALES)
    for wrong in ({"prices": [0] * 257}, {"prices": "x"}, {"prices": [-1]}, {"picture": 3}, {"question": 3}):
        assert served.request("POST", "/v1/mvlm/choose", asked | wrong)[0] == 400


def test_the_question_is_looked_at_once_whatever_the_number_of_prices(served, runtime, picture, monkeypatch):
    from export.runtime import choosing

    looked = []
    features = choosing.question_features
    monkeypatch.setattr(choosing, "question_features", lambda *of: looked.append(1) or features(*of))
    asked = {"picture": data_url(picture), "question": QUESTION, "prices": [0.01 * place for place in range(256)]}
    assert served.request("POST", "/v1/mvlm/choose", asked)[0] == 200
    assert len(looked) == 1


def test_metrics_count_scales_stages_and_refusals(runtime, picture):
    with serving(runtime) as server:
        for scale in (1, 9, 9, "auto"):
            server.chat(body(picture, QUESTION, f"mvlm-{scale}", max_tokens=2))
        server.chat(b"{")
        text = server.request("GET", "/metrics")[2].decode()
    assert 'mvlm_answers_total{chosen="named",scale="9"} 2.0' in text
    assert 'mvlm_refused_total{code="bad-body"} 1.0' in text
    assert 'mvlm_stage_seconds_count{stage="prefill"} 4.0' in text
    assert 'mvlm_stage_seconds_count{stage="vision"} 1.0' in text  # the picture was kept
    assert "mvlm_answer_tokens_total" in text
    assert "mvlm_waiting 0.0" in text
    assert "mvlm_connections 1.0" in text
    assert "mvlm_bytes_in_flight 0.0" in text
