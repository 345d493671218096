"""OpenAI's responses by OpenAI's own client: texts, pictures, history, streams, and what is refused."""

from __future__ import annotations

import json

import openai
import pytest

from tests.support.serving import data_url
from tests.support.tiny import QUESTIONS

QUESTION = QUESTIONS[0]


def shows(picture: bytes, text: str) -> dict:
    return {"role": "user", "content": [
        {"type": "input_image", "image_url": data_url(picture), "detail": "auto"}, {"type": "input_text", "text": text},
    ]}  # fmt: skip


def test_a_text(client, runtime):
    answer = client.responses.create(model="mvlm-auto", input="hi", max_output_tokens=6)
    assert answer.output_text == runtime.chat([{"role": "user", "content": "hi"}], max_new_tokens=6).text
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.output_tokens == 6
    assert answer.usage.total_tokens == answer.usage.input_tokens + 6


def test_pictures_instructions_and_history(client, runtime, picture):
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "red"}]}
    answer = client.responses.create(
        model="mvlm-9", instructions="Be brief.", max_output_tokens=6, store=False, metadata={"camera": "1"},
        input=[shows(picture, QUESTION), said, {"role": "user", "content": "why?"}],
    )  # fmt: skip
    asked = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]}
    wanted = runtime.chat(
        [{"role": "system", "content": "Be brief."}, asked, {"role": "assistant", "content": "red"},
         {"role": "user", "content": "why?"}], 9, max_new_tokens=6,
    )  # fmt: skip
    assert answer.output_text == wanted.text
    assert answer.mvlm["scales"] == [9]


def test_a_stream(client, runtime, picture):
    events = list(
        client.responses.create(model="mvlm-9", input=[shows(picture, QUESTION)], stream=True, max_output_tokens=8)
    )
    wanted = runtime.ask(picture, QUESTION, 9, max_new_tokens=8).text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == wanted
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
    assert events[-1].response.output_text == wanted
    assert events[-1].response.usage.output_tokens == 8


def test_what_ends_by_itself_is_completed(client):
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    form = {"type": "json_schema", "name": "x", "schema": {"enum": [{"seen": True}]}}
    answer = client.responses.create(model="mvlm-auto", input="hi", text={"format": form})
    assert (json.loads(answer.output_text), answer.status) == ({"seen": True}, "completed")
    assert answer.incomplete_details is None


def test_oldest_turns_go_where_that_is_asked_for(client):
    long = [{"role": role, "content": f"{n} {'word ' * 9}"} for n in range(30) for role in ("user", "assistant")]
    asked = {"model": "mvlm-9", "input": [*long, {"role": "user", "content": "why?"}], "max_output_tokens": 2}
    with pytest.raises(openai.BadRequestError, match="does not fit"):
        client.responses.create(**asked)
    assert client.responses.create(**asked, truncation="auto").mvlm["dropped_turns"] > 0


def test_a_stream_that_fails_says_so(served, monkeypatch):
    from dataclasses import replace

    from export.runtime.serve.limits import Limits
    from tests.support.serving import serving

    runtime = served.runtime
    monkeypatch.setattr(runtime, "manifest", replace(runtime.manifest, stop_ids=frozenset()))
    step = type(runtime.decoder).step

    def slowly(self, embeds, cache):
        import time

        time.sleep(0.01)
        return step(self, embeds, cache)

    monkeypatch.setattr(type(runtime.decoder), "step", slowly)
    with serving(runtime, limits=Limits(seconds=0.3)) as server:
        asked = {"model": "mvlm-9", "input": "hi", "stream": True, "max_output_tokens": 200}
        data = server.request("POST", "/v1/responses", asked)[2].decode()
    last = json.loads(data.strip().split("\n\n")[-1].partition("data: ")[2])
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert "no answer within 0.3 s" in last["response"]["error"]["message"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"previous_response_id": "resp_1"}, "no response is kept"), ({"conversation": "c"}, "no response is kept"),
        ({"background": True}, "background is not offered"), ({"input": 3}, "input is '3'"),
        ({"input": [{"type": "function_call_output"}]}, "an item of the input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "the role of a message is 'tool'"),
        ({"input": [{"role": "user", "content": 3}]}, "the content of a message"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "a part of a message"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x/y"}]}]}, "is fetched"),
        ({"text": 3}, "text is '3'"), ({"truncation": "newest"}, "truncation is 'newest'"),
        ({"tool_choice": "required"}, "no tool is called"), ({"instructions": 3}, "content of a message"),
    ],
)  # fmt: skip
def test_what_cannot_be_had(served, change, says):
    status, _, data = served.request("POST", "/v1/responses", {"model": "mvlm-9", "input": "hi"} | change)
    assert status == 400
    assert says in json.loads(data)["error"]["message"]
