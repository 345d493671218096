"""Bodies: what is taken, what is refused by name, and nothing in between."""

from __future__ import annotations

import base64
import json
import re
import socket
import textwrap
from io import BytesIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from export.runtime import MvlmError
from export.runtime.data_url import read_data_url
from export.runtime.serve.chat import model_names, read_chat
from export.runtime.serve.limits import Limits
from tests.support.serving import body, data_url, serving
from tests.support.tiny import QUESTIONS, SCALES

QUESTION = QUESTIONS[0]
MODELS = model_names(SCALES, routed=True)


def changed(chat: dict, **change) -> dict:
    return {name: value for name, value in (chat | change).items() if value is not ...}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}}, {"modalities": ["text"], "top_logprobs": 0, "logprobs": False},
        {"tools": [], "tool_choice": "auto", "functions": []}, {"tool_choice": "none"}, {"function_call": "auto"},
        {"n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
        {"stop": None, "seed": None, "audio": None, "response_format": None}, {"user": "me", "store": False},
        {"max_tokens": 1, "max_completion_tokens": 1}, {"stream": None, "stream_options": None},
    ],
)  # fmt: skip
def test_fields_that_ask_for_what_happens_anyway(served, picture, fields):
    status, answer = served.chat(body(picture, QUESTION, "mvlm-1", **({"max_tokens": 1} | fields)))
    assert status == 200, answer
    assert answer["mvlm"]["ignored"] == []


def test_fields_that_change_nothing_essential_are_left_out_and_listed(served, picture):
    more = {"keep_alive": "5m", "cache_prompt": True, "reasoning_effort": "low", "tools": [{"type": "function"}]}
    chat = body(picture, QUESTION, "mvlm-1", max_tokens=1)
    status, answer = served.chat(chat | more | {"tool_choice": "auto"})
    assert status == 200
    assert answer["mvlm"]["ignored"] == sorted(more)
    assert answer["choices"] == served.chat(chat)[1]["choices"]


@pytest.mark.parametrize(
    ("change", "says", "param"),
    [
        ({"n": 20}, "n is '20'", "n"),
        ({"tools": [{"type": "function"}], "tool_choice": "required"}, "tool_choice 'required'", "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format", "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "response_format"),
        ({"logprobs": 1}, "logprobs", "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities", "modalities"),
        ({"stream": "false"}, "stream is 'false': send true or false", "stream"),
        ({"stream": 1}, "stream is '1'", "stream"),
        ({"stream_options": {"include_usage": "no"}}, "stream_options.include_usage", "stream_options.include_usage"),
        ({"stream_options": []}, None, None),
        ({"stream_options": "x"}, "stream_options is 'x'", None),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "name one of them", "max_tokens"),
        ({"mvlm": {"scale": "many"}}, "mvlm.scale is 'many'", "mvlm"),
        ({"model": "mvlm-auto", "mvlm": {"scale": 7}}, "no scale 7", None),
        ({"mvlm": {"size": 7}}, "mvlm takes", "mvlm"),
        ({"mvlm": [1]}, "mvlm takes", "mvlm"),
        ({"mvlm": {"price": -1}}, "the price is -1", None),
        ({"mvlm": {"price": 10**400}}, "the price is", None),
        ({"model": "mvlm-auto", "mvlm": {"deadline_ms": 1}}, "mvlm bench", None),
        ({"model": "mvlm-9", "mvlm": {"scale": 36}}, "name one scale", "mvlm"),
        ({"model": ...}, "no model 'null'", "model"),
        ({"model": ["mvlm-9"]}, "no model", "model"),
        ({"max_tokens": "many"}, "max_tokens is 'many'", "max_tokens"),
        ({"max_tokens": 0}, "max_tokens is '0'", "max_tokens"),
        ({"max_tokens": ..., "max_completion_tokens": 1.5}, "max_completion_tokens is '1.5'", "max_completion_tokens"),
        ({"temperature": "hot"}, "temperature is 'hot'", None),
        ({"temperature": 10**400}, "temperature is", None),
        ({"top_p": 0}, "top_p is 0", None),
        ({"stop": [""]}, "stop holds something", None),
        ({"messages": ...}, "no message", None),
        ({"messages": []}, "no message", None),
        ({"messages": [{}] * 1001}, "at most 1000", None),
        ({"messages": ["x"]}, "a message is 'x'", None),
        ({"messages": [{"role": "user", "content": ""}]}, "is empty: ask something", None),
        ({"messages": [{"role": "tool", "content": []}]}, "the role of a message is 'tool'", None),
        ({"messages": [{"role": ["user"], "content": ""}]}, "the role of a message", None),
        ({"messages": [{"role": "user", "content": 3}]}, "the content of a message is '3'", None),
        ({"messages": [{"role": "user", "content": None}]}, "the content of a message is 'null'", None),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "a part of a message", None),
        ({"messages": [{"role": "user", "content": [3]}]}, "a part of a message", None),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "a part of a message", None),
        ({"messages": [{"role": "assistant", "content": "red"}]}, "end with the user's", None),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "no tool is called", None),
        ({"messages": [{"role": "assistant", "content": [{"type": "image_url"}]}]}, "only users show", None),
    ],
)
def test_bodies_that_are_refused(served, picture, change, says, param):
    status, answer = served.chat(changed(body(picture, QUESTION, "mvlm-1", max_tokens=1), **change))
    if says is None:
        assert status == 200
        return
    assert status in (400, 404)
    assert says in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not valid JSON"), (b"{", "not valid JSON"), (b"[]", "not a JSON object"),
        (b"\xff\xfe", "not valid JSON"), (b"[" * 10_000 + b"]" * 10_000, "nested too deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested too deep"),
        (b'{"temperature": 1e400}', "the number 1e400 is too large"), (b'{"temperature": NaN}', "NaN is no number"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "has 5000 digits"),
        (b'{"n": 1, "stream": true, "stream": false}', "it names 'stream' twice"),
        (b'{"mvlm": {"scale": 1, "scale": 9}}', "it names 'scale' twice"),
    ],
)  # fmt: skip
def test_bodies_that_are_no_json(served, data, says):
    status, answer = served.chat(data)
    assert status == 400
    assert says in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]


def test_a_body_of_another_type(served, picture):
    assert served.chat(body(picture, QUESTION), **{"Content-Type": "text/plain"})[0] == 415


# Pictures

WAYS = {
    "as it should be": lambda plain: f"data:image/png;base64,{plain}",
    "in capitals, wrapped": lambda plain: "DATA:image/PNG;charset=utf-8;base64," + "\n".join(textwrap.wrap(plain, 76)),
    "wrapped as in mail": lambda plain: "data:image/png;base64,\r\n" + "\r\n".join(textwrap.wrap(plain, 64)) + "\r\n",
    "unpadded": lambda plain: f"data:image/png;base64,{plain.rstrip('=')}",
    "URL-safe": lambda plain: "data:image/png;base64," + plain.replace("+", "-").replace("/", "_").rstrip("="),
    "percent-encoded": lambda plain: f"data:image/png;base64,{plain.replace('+', '%2B').replace('=', '%3D')}",
    "named": lambda plain: f"data:image/png;name=a.png;base64,{plain}",
    "with spaces": lambda plain: f" data: image/png; base64, {plain} ",
    "of no type": lambda plain: f"data:;base64,{plain}",
    "as bytes": lambda plain: f"data:application/octet-stream;base64,{plain}",
    "as something that it is not": lambda plain: f"data:text/plain;base64,{plain}",
    "as image/jpg, which there is not": lambda plain: f"data:image/jpg;base64,{plain}",
    "plain": lambda plain: plain,
    "plain and unpadded": lambda plain: plain.rstrip("="),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_decodes_to_a_picture_is_one(served, picture, way):
    for data in (picture, picture + b"\0", picture + b"\xff\xfe\xfd\xfb"):  # with no, two and one characters of padding
        url = WAYS[way](base64.b64encode(data).decode())
        assert read_data_url(url) == data
    chat = body(picture, QUESTION, "mvlm-1", max_tokens=1)
    chat["messages"][0]["content"][1]["image_url"] = {"url": url, "detail": "low"}
    assert served.chat(chat)[0] == 200


@pytest.mark.parametrize("size", [1, 2, 3, 4, 1000])
def test_a_picture_of_as_many_bytes_as_are_allowed(size):
    assert read_data_url(data_url(b"x" * size), size) == b"x" * size
    with pytest.raises(MvlmError, match=f"more than {size} bytes"):
        read_data_url(data_url(b"x" * (size + 1)), size)


@pytest.mark.parametrize("url", ["data:image/png;base64,A", "data:image/png;base64,!!!!", "data:image/png;base64,ÄÄÄÄ"])
def test_what_is_no_base64(url):
    with pytest.raises(MvlmError, match="not valid base64"):
        read_data_url(url)


@pytest.mark.parametrize("data", [b"", b"AAAA", b"<svg/>", b"%PDF-1.7"])
def test_what_is_no_picture(served, data):
    status, said = served.chat(body(data, QUESTION))
    assert (status, said["error"]["code"]) == (400, "bad-picture")
    assert "cannot be read as a picture (it is none of BMP, GIF, JPEG" in said["error"]["message"]


@pytest.mark.parametrize(
    "url",
    ["http://example.org/x.png", "file:///etc/passwd", "../x.png", "data:text/html,AA==", "", None, 3, {},
     "data:image/png,AAAA", "data:image/png;base64", "x" * 39],
)  # fmt: skip
def test_no_url_is_fetched_and_no_path_is_read(served, monkeypatch, url):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection was opened"))
    chat = body(b"", QUESTION)
    chat["messages"][0]["content"][1]["image_url"] = {"url": url}
    connection = socket.socket()
    connection.connect(("127.0.0.1", served.port))
    data = json.dumps(chat).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    answer = b"".join(iter(lambda: connection.recv(65536), b""))
    connection.close()
    assert b"400 Bad Request" in answer
    assert b"nothing is fetched" in answer


def test_limits(runtime):
    limits = Limits(body_bytes=5000, picture_bytes=1000, pixels=1000, question_characters=10, pictures=2)
    with serving(runtime, limits=limits) as server:

        def said(chat) -> str:
            return server.chat(chat)[1]["error"]["message"]

        assert server.chat(b" " * 5001)[0] == 413
        assert "more than 1000 bytes" in said(body(b"x" * 1200, "q"))
        assert "at most 10 are read" in said(body(b"", "q" * 11))
        Image.new("1", (40, 40)).save(small := BytesIO(), "PNG")
        assert "at most 1000 are read" in said(body(small.getvalue(), "q"))
        many = body(b"", "q")
        many["messages"][0]["content"] += [many["messages"][0]["content"][1]] * 2
        assert "hold 3 pictures: at most 2" in said(many)


# Anything

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KNOWN = [
    "model", "messages", "stream", "stream_options", "mvlm", "max_tokens", "max_completion_tokens", "temperature",
    "top_p", "seed", "stop", "n", "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty", "logit_bias",
    "response_format", "modalities", "audio", "tools", "tool_choice", "functions", "function_call", "user",
]  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_body_is_a_chat_or_one_line(picture, data):
    """Any JSON, and a real body with any of its parts replaced by anything, half characters and all."""
    chat = body(picture, QUESTION, stream=False, mvlm={"scale": 9}, stop=["x"], stream_options={}, n=1)
    place = data.draw(st.sampled_from(["all", "field", "message", "part", "url", "new", "ours"]))
    value = data.draw(ANYTHING)
    if place == "all":
        chat = value
    elif place == "field":
        chat[data.draw(st.sampled_from(KNOWN))] = value
    elif place == "ours":
        chat["mvlm"] = {data.draw(st.sampled_from(["scale", "price", "budget", "cap", "choices"])): value}
    elif place == "new":
        chat[data.draw(st.text())] = value
    elif place == "message":
        chat["messages"][0][data.draw(st.sampled_from(["role", "content", "name", "tool_calls"]))] = value
    elif place == "part":
        chat["messages"][0]["content"][data.draw(st.integers(0, 1))] = value
    else:
        chat["messages"][0]["content"][1]["image_url"] = value
    try:
        read = read_chat(json.dumps(chat).encode(), Limits(), MODELS)
    except MvlmError as error:
        said = str(error)
    else:
        said = ""
        assert read.messages[-1].role == "user"
        assert read.scale == "auto" or read.scale in SCALES or isinstance(read.scale, int)
        assert json.dumps(read.ignored)
    assert "\n" not in said
    assert len(said) < 400


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(url=st.text() | st.text(alphabet="data:image/png;base64,AB+/=-_ \n%"))
def test_any_url_is_a_picture_or_one_line(url):
    said = ""
    try:
        read_data_url(url)
    except MvlmError as error:
        said = f"{error.code}: {error}"
    assert re.fullmatch(r"|bad-picture: [^\r\n]+", said)
