"""Any body of every face of the server becomes a question that the runtime takes, or one line; CASES of each."""

from __future__ import annotations

import base64
import json
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from export.runtime.errors import MvlmError
from export.runtime.request import request_of
from export.runtime.serve.body import read_json
from export.runtime.serve.chat import model_names, read_chat
from export.runtime.serve.choosing import read_question
from export.runtime.serve.limits import Limits
from export.runtime.serve.ollama import loaded, read_ollama, read_prompt
from export.runtime.serve.responses import read_responses

CASES = 150
MODELS = model_names((1, 9, 144), routed=True)
_file = BytesIO()
Image.new("RGB", (4, 4)).save(_file, "PNG")
PICTURE = base64.b64encode(_file.getvalue()).decode()
BODIES = {
    "chat": {"model": "mvlm-9", "messages": [{"role": "user", "content": [
        {"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": f"data:;base64,{PICTURE}"}}]}],
        "temperature": 0, "logit_bias": {"1": 2}, "stop": ["x"], "stream_options": {"include_usage": True},
        "mvlm": {"price": 1, "choices": ["a", "b"]}, "response_format": {"type": "text"}, "tools": [], "n": 1,
        "repeat_penalty": 1.1, "grammar": "", "typical_p": 1},
    "ollama": {"model": "mvlm-9:latest", "messages": [{"role": "user", "content": "q", "images": [PICTURE]}],
               "stream": False, "options": {"temperature": 0, "num_predict": 4, "stop": ["x"], "seed": 1,
                                           "repeat_penalty": 1.1, "repeat_last_n": 8, "mirostat": 0},
               "think": False, "truncate": True, "logprobs": True, "top_logprobs": 1},
    "prompt": {"model": "mvlm-auto", "prompt": "q", "system": "s", "images": [PICTURE], "stream": False, "format": ""},
    "responses": {"model": "mvlm-9", "instructions": "s", "max_output_tokens": 4, "truncation": "auto", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "q"},
                                     {"type": "input_image", "image_url": f"data:;base64,{PICTURE}"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]}, {"role": "user", "content": "q"}],
        "text": {"format": {"type": "text"}}, "tools": [], "temperature": 0},
    "choose": {"picture": PICTURE, "question": "q", "prices": [0, 1.5]},
}  # fmt: skip


def of_ollama(read, *, prompted: bool):
    """As the server reads Ollama's bodies; one that asks nothing is answered at once."""

    def reader(body, limits, models):
        value = read_json(body)
        return loaded(value, models, prompted=prompted) or read(value, limits, models)

    return reader


READERS = {
    "chat": read_chat, "responses": read_responses,
    "ollama": of_ollama(read_ollama, prompted=False), "prompt": of_ollama(read_prompt, prompted=True),
}  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**400, "1e400", "auto"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value, at: tuple = ()) -> list[tuple]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(found for key, part in inside for found in places(part, (*at, key)))]


def changed(value, path: tuple, to):
    """A body with another value in one place."""
    if not path:
        return to
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], to)
    return copy


@pytest.mark.parametrize("face", BODIES)
@settings(max_examples=CASES, deadline=None)
@given(st.data())
def test_any_body_of_any_face(face, data):
    told = BODIES[face]
    for _ in range(data.draw(st.integers(1, 2))):
        told = changed(told, data.draw(st.sampled_from(places(told))), data.draw(ANYTHING))
    body = json.dumps(told).encode()
    said = ""
    try:
        if face == "choose":
            asked = read_question(body, Limits())
            for price in asked.prices:
                request_of(asked.question, "auto", {"price": price})
        else:
            chat = READERS[face](body, Limits(), MODELS)
            if isinstance(chat, dict):
                return
            options = {name: value for name, value in chat.options.items() if name != "truncate"}
            request_of(chat.messages[-1].text or "?", chat.scale, options)
    except MvlmError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 400
