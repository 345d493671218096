"""What four clients send, written anew from their documentation: whole and streamed, by OpenAI's client and raw."""

from __future__ import annotations

import base64
import importlib.util
import json

import pytest

from tests.serve.test_clients import asked, shows, told, words
from tests.support.tiny import QUESTIONS

SCHEMA = {
    "type": "object", "properties": {"threat": {"enum": [0, 1, 2]}}, "required": ["threat"],
    "additionalProperties": False,
}  # fmt: skip
FORM = {"type": "json_schema", "json_schema": {"name": "review", "strict": True, "schema": SCHEMA}}
# Fields of Open WebUI's own, which OpenAI's client does not know.
EXTRAS = {"chat_id": "1", "session_id": "2", "background_tasks": {"title_generation": True}}


@pytest.fixture(scope="module")
def pictures(made) -> list[bytes]:
    return [made.picture(i).read_bytes() for i in range(4)]


def live_vlm_webui(pictures):
    return [{"messages": [shows("Describe this image in one sentence.", pictures[0])], "max_tokens": 8,
             "temperature": 0.7, "seed": 1}]  # fmt: skip


def frigate(pictures):
    """A picture; thumbnails of an object; a review of several as JSON; a summary of texts alone."""
    review = [words("You review security footage.", "system"), shows("Rate the threat.", *pictures[:2])]
    form = FORM if importlib.util.find_spec("llguidance") else {"type": "text"}
    return [
        {"messages": [shows("Describe the person.", pictures[0])]},
        {"messages": [shows("What does the person do?", *pictures[:3])], "max_tokens": 8},
        {"messages": review, "response_format": form, "max_tokens": 100},
        {"messages": [words("Summarise: a person came, a person left.")], "max_tokens": 8},
    ]


def llm_vision(pictures):
    """Home Assistant's: it tests an endpoint with a word, and then sends a system text and pictures with names."""
    message = shows("front door:", pictures[0], "garden:", pictures[1], "who is there?")
    return [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "max_completion_tokens": 10,
         "temperature": 0.5, "seed": 1},
        {"messages": [words("You watch a home.", "system"), message], "max_completion_tokens": 20, "temperature": 0.2,
         "top_p": 0.9, "seed": 1},
    ]  # fmt: skip


def open_webui(pictures):
    """History with a system text and extras; then a title, as a request of texts alone."""
    messages = [
        words("You are helpful.", "system"), shows(QUESTIONS[0], pictures[0]), words("red", "assistant"),
        words("and now?"),
    ]  # fmt: skip
    title = [words("### Task: a title for <chat_history>red</chat_history>")]
    return [{"messages": messages, "max_tokens": 8, **EXTRAS}, {"messages": title, "max_tokens": 8}]


def raw(served, client, body) -> str:
    return told(served, **{"max_tokens": None, "model": "mvlm-auto"} | body)["choices"][0]["message"]["content"]


def raw_stream(served, client, body) -> str:
    status, headers, data = served.request(
        "POST", "/v1/chat/completions", {"model": "mvlm-auto", "stream": True} | body
    )
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    *chunks, end = data.decode().removesuffix("\n\n").split("\n\n")
    assert end == "data: [DONE]"
    told = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in told)


def for_client(body) -> dict:
    own = {name: part for name, part in body.items() if name not in EXTRAS}
    return {"model": "mvlm-auto", **own, "extra_body": {name: body[name] for name in EXTRAS if name in body}}


def whole(served, client, body) -> str:
    answer = client.chat.completions.create(**for_client(body))
    assert answer.usage.total_tokens
    assert answer.mvlm["ignored"] == sorted(name for name in EXTRAS if name in body)
    return answer.choices[0].message.content


def stream(served, client, body) -> str:
    usage = {"include_usage": True}
    chunks = list(client.chat.completions.create(**for_client(body), stream=True, stream_options=usage))
    assert chunks[-1].usage.total_tokens
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


@pytest.mark.parametrize("shapes", [live_vlm_webui, frigate, llm_vision, open_webui])
def test_each_way_gets_the_same_answer(served, client, pictures, shapes):
    for body in shapes(pictures):
        answers = {way.__name__: way(served, client, body) for way in (raw, raw_stream, whole, stream)}
        assert len(set(answers.values())) == 1, answers
        if body.get("response_format") is FORM:
            assert json.loads(answers["raw"])["threat"] in (0, 1, 2)


def test_ollamas_client_holds_a_conversation(served, runtime, pictures):
    """Frigate and Home Assistant speak it: a system text, several pictures, history, and JSON."""
    ollama = pytest.importorskip("ollama", reason="the client of Ollama is not installed")
    client = ollama.Client(host=served.url)
    messages = [
        words("You watch a home.", "system"),
        {"role": "user", "content": QUESTIONS[0], "images": [base64.b64encode(one).decode() for one in pictures[:2]]},
        words("red", "assistant"), words("and now?"),
    ]  # fmt: skip
    before = [words("You watch a home.", "system"), asked(*pictures[:2], QUESTIONS[0]), words("red", "assistant")]
    wanted = runtime.chat([*before, words("and now?")], 9, max_new_tokens=6).text
    answer = client.chat(model="mvlm-9", messages=messages, options={"num_predict": 6}, keep_alive="5m")
    assert answer.message.content == wanted
    pieces = client.chat(model="mvlm-9", messages=messages, options={"num_predict": 6}, stream=True)
    assert "".join(piece.message.content for piece in pieces) == wanted
    if importlib.util.find_spec("llguidance"):
        answer = client.chat(model="mvlm-9", messages=messages, format=SCHEMA, options={"num_predict": 100})
        assert json.loads(answer.message.content)["threat"] in (0, 1, 2)
