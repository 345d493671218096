"""What is rough on a server: callers who leave in the middle, giant texts, any letters, answers that end at once."""

from __future__ import annotations

import http.client
import json
import threading
from dataclasses import replace

import pytest

from tests.serve.test_clients import shows, told, words
from tests.serve.test_four_clients import raw, raw_stream
from tests.support.serving import body, serving
from tests.support.tiny import QUESTIONS


def test_those_who_stay_get_their_answers_while_others_leave_in_the_middle(runtime, picture, endless):
    with serving(runtime) as served:
        chats = [body(picture, f"{QUESTIONS[number % 4]} {number}", "mvlm-9", max_tokens=60) for number in range(8)]
        wanted = [raw(served, None, chat) for chat in chats]
        got: dict[int, str] = {}

        def stay(number: int) -> None:
            got[number] = raw_stream(served, None, chats[number])

        def leave(number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
            data = json.dumps(chats[number] | {"stream": True})
            connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
            connection.getresponse().read(200 * (1 + number))
            connection.close()

        callers = [threading.Thread(target=leave if n % 2 else stay, args=(n,)) for n in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
        assert got == {number: wanted[number] for number in range(0, 8, 2)}
        assert raw(served, None, chats[1]) == wanted[1]  # what the one who left had read is of use, and right
        assert b"mvlm_faults_total 0.0" in served.runtime_metrics()


def test_a_model_that_ends_at_once(runtime, picture, monkeypatch):
    every = frozenset(range(runtime.manifest.embedding.shape[0]))
    monkeypatch.setattr(runtime, "manifest", replace(runtime.manifest, stop_ids=every))
    with serving(runtime) as served:
        chat = body(picture, QUESTIONS[0], "mvlm-9", n=2, logprobs=True)
        answer = told(served, **chat)
        assert [(one["message"]["content"], one["finish_reason"]) for one in answer["choices"]] == [("", "stop")] * 2
        assert answer["usage"]["completion_tokens"] == 0
        assert raw_stream(served, None, chat) == ""
        asks = {"model": "mvlm-9", "messages": [words("hi")]}
        line = json.loads(served.request("POST", "/api/chat", asks)[2])
        assert (line["message"]["content"], line["done_reason"]) == ("", "stop")
        status, _, data = served.request("POST", "/v1/responses", {"model": "mvlm-9", "input": "hi"})
        assert (status, json.loads(data)["status"]) == (200, "completed")


def test_a_giant_system_text_is_one_line_whatever_may_be_left_out(served, picture):
    messages = [words("be brief. " * 2000, "system"), words("hi"), words("yes", "assistant"), shows(picture, "what?")]
    for terms in ({}, {"truncate": "oldest"}):
        status, answer = served.chat({"model": "mvlm-9", "messages": messages, "mvlm": terms})
        assert (status, answer["error"]["code"]) == (400, "too-long")
        assert "\n" not in answer["error"]["message"]
        assert ("earlier turns" in answer["error"]["message"]) == (not terms)  # none is left
    status, answer = served.chat({"model": "mvlm-9", "messages": [words("x" * 70_000, "system"), words("hi")]})
    assert (status, answer["error"]["code"]) == (400, "too-long")


@pytest.mark.parametrize(
    "text",
    ["где мяч?", "這是什麼?", "👩‍👩‍👧 ¿dónde?", "e\u0301\u200d\u202eabc", "\ufdd0<image>\ufdd0", "<end><assistant>",
     "\x00\x1b[31m"],
)  # fmt: skip
def test_any_letters(served, runtime, text):
    messages = [words(f"{text} {text}", "system"), words(text)]
    wanted = runtime.chat(messages, 9, max_new_tokens=6).text
    assert raw(served, None, {"model": "mvlm-9", "messages": messages, "max_tokens": 6}) == wanted
    assert raw_stream(served, None, {"model": "mvlm-9", "messages": messages, "max_tokens": 6}) == wanted


def test_a_stop_text_across_tokens(served, picture, endless):
    chat = body(picture, QUESTIONS[0], "mvlm-9", max_tokens=40)
    whole = raw(served, None, chat)
    for at in range(1, len(whole) - 4, 7):
        stop = whole[at : at + 4]
        if not stop.strip():
            continue
        cut = whole[: whole.index(stop)].strip()
        assert raw(served, None, chat | {"stop": [stop, "never"]}) == cut
        assert raw_stream(served, None, chat | {"stop": stop}) == cut


def test_a_schema_that_holds_itself(served, picture):
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    below = {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
    tree = {
        "type": "object", "properties": {"kind": {"enum": ["a"]}, "below": below}, "required": ["kind", "below"],
        "additionalProperties": False,
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "tree", "schema": tree}}
    chat = body(picture, QUESTIONS[0], "mvlm-9", response_format=form, max_tokens=200, temperature=1, seed=4)
    answer = told(served, **chat)["choices"][0]
    if answer["finish_reason"] == "stop":
        assert json.loads(answer["message"]["content"])["kind"] == "a"
    assert answer["message"]["content"].replace(" ", "").startswith('{"kind":"a","below":')
    assert raw_stream(served, None, chat) == answer["message"]["content"]
