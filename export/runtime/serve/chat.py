"""OpenAI's chat completions, as far as one question about one picture goes: a body in, a request out, an answer back.

What the body asks for and cannot be had is refused by name; nothing is left out in silence.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from export.runtime.answer import Answer
from export.runtime.errors import MvlmError
from export.runtime.request import Scale

AUTO = "mvlm-auto"
_PREFIX = "mvlm-"
# Fields that change nothing here, and fields that may stand in a body as long as they ask for what happens anyway.
_WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "stream_options", "safety_identifier"}
_ONLY: dict[str, set[Any]] = {
    "n": {1}, "logprobs": {False}, "presence_penalty": {0}, "frequency_penalty": {0}, "logit_bias": {None},
    "tools": {None}, "tool_choice": {None, "none"}, "parallel_tool_calls": {False, True},
}  # fmt: skip
_OURS = {"scale", "price", "budget", "within", "cap", "least_probability", "deadline_ms", "choices"}
_RENAMED = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
_SAME = {"temperature", "top_p", "seed", "stop"}
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
_FINISH = {"stop": "stop", "length": "length", "deadline": "length", "stopped": "length"}


@dataclass(frozen=True)
class Limits:
    """What one caller may ask of a server."""

    queue: int = 16
    body_bytes: int = 24 * 2**20
    picture_bytes: int = 16 * 2**20
    pixels: int = 32_000_000
    question_characters: int = 4000
    new_tokens: int = 1024
    seconds: float = 60.0


@dataclass(frozen=True)
class Chat:
    """One question about one picture, out of a body."""

    model: str
    picture: bytes
    question: str
    scale: Scale
    options: dict[str, Any]
    stream: bool
    with_usage: bool


def model_names(scales: Sequence[int], *, routed: bool) -> list[str]:
    """`mvlm-auto` where a router chooses, and a name for each scale."""
    return [*([AUTO] if routed else []), *(f"{_PREFIX}{m}" for m in scales)]


def read_json(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises `MvlmError` for anything else, nested however deep."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)[:120]
        raise MvlmError(f"the body is not valid JSON ({reason})", code="bad-body") from None
    if not isinstance(value, dict):
        raise MvlmError("the body is not a JSON object", code="bad-body")
    return value


def read_chat(body: bytes, limits: Limits, models: Sequence[str]) -> Chat:
    """A chat from a body. Raises `MvlmError` naming what is wrong or cannot be had."""
    value = read_json(body)
    model = value.get("model")
    if model not in models:
        raise MvlmError(f"there is no model {_short(model)}: name one of {', '.join(models)}", code="model_not_found")
    options = _options(value, limits)
    scale = _scale(str(model), options.pop("scale", None))
    picture, question = _turn(value.get("messages"), limits)
    stream_options = value.get("stream_options") or {}
    usage = isinstance(stream_options, dict) and bool(stream_options.get("include_usage"))
    return Chat(str(model), picture, question, scale, options, bool(value.get("stream")), usage)


def _options(value: dict[str, Any], limits: Limits) -> dict[str, Any]:
    ours = value.get("mvlm") or {}
    if not isinstance(ours, dict) or not set(ours) <= _OURS:
        raise MvlmError(f"mvlm takes {', '.join(sorted(_OURS))}, and holds {_short(ours)}", code="bad-option")
    options = {name: part for name, part in ours.items() if part is not None}
    for name, part in value.items():
        if part is None or name in _WITHOUT_EFFECT | {"model", "messages", "stream", "mvlm"}:
            continue
        if name in _SAME or name in _RENAMED:
            options[_RENAMED.get(name, name)] = part
        elif name not in _ONLY or not (
            (isinstance(part, str | int | float) and part in _ONLY[name]) or part in ([], {})
        ):
            raise MvlmError(f"{_short(name)} {_short(part)} is not offered here: leave it out", code="unsupported")
    longest = options.get("max_new_tokens", 0)
    if isinstance(longest, int) and longest > limits.new_tokens:
        raise MvlmError(f"max_tokens is {longest}: at most {limits.new_tokens} are given", code="bad-option")
    return options


def _changes_nothing(name: str, part: object) -> bool:
    return name in _ONLY and (part in ([], {}) or (isinstance(part, str | int | float) and part in _ONLY[name]))


def _scale(model: str, named: object) -> Scale:
    of_model = None if model == AUTO else int(model.removeprefix(_PREFIX))
    if named in (None, "auto"):
        return of_model or "auto"
    if not isinstance(named, int) or isinstance(named, bool) or named != (of_model or named):
        raise MvlmError(f"the model is {model}, and mvlm.scale is {_short(named)}: name one scale", code="bad-scale")
    return named


def _turn(messages: object, limits: Limits) -> tuple[bytes, str]:
    """The picture and the question of the only message."""
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        raise MvlmError("messages must hold one message: a question about a picture has one turn", code="bad-messages")
    content = messages[0].get("content")
    if messages[0].get("role") != "user" or not isinstance(content, list):
        raise MvlmError("the message must be the user's, with a text and an image_url in it", code="bad-messages")
    texts, pictures = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            pictures.append(read_data_url(_url_of(part), limits))
        else:
            raise MvlmError(f"a part of the message is {_short(part)}: give text and image_url", code="bad-messages")
    if len(pictures) != 1 or not texts:
        raise MvlmError(
            f"the message holds {len(pictures)} pictures and {len(texts)} texts: give one picture and a question",
            code="bad-messages",
        )
    return pictures[0], require_question("\n".join(texts), limits)


def require_question(question: object, limits: Limits) -> str:
    if not isinstance(question, str) or len(question) > limits.question_characters:
        raise MvlmError(f"the question is no text of at most {limits.question_characters} characters", code="too-long")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise MvlmError("the question holds half a character: send whole ones", code="bad-body") from None
    return question


def _url_of(part: dict[str, Any]) -> object:
    image = part.get("image_url")
    return image.get("url") if isinstance(image, dict) else image


def read_data_url(url: object, limits: Limits) -> bytes:
    """The bytes of a `data:image/…;base64,` URL. Raises `MvlmError` for any other: nothing is fetched."""
    match = _DATA_URL.match(url) if isinstance(url, str) else None
    if not isinstance(url, str) or not match:
        raise MvlmError(
            f"the picture's URL is {_short(url)}: send data:image/png;base64,… (nothing is fetched)", code="bad-picture"
        )
    encoded = url[match.end() :]
    if len(encoded) * 3 // 4 > limits.picture_bytes:
        raise MvlmError(f"the picture has more than {limits.picture_bytes} bytes: send a smaller one", code="too-large")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise MvlmError("the picture is not valid base64: encode it again", code="bad-picture") from None


def facts_of(answer: Answer) -> dict[str, Any]:
    """What stands under `mvlm` beside OpenAI's own fields."""
    return {
        "num_visual_tokens": answer.num_visual_tokens, "reason": answer.reason, "probability": answer.probability,
        "probabilities": answer.probabilities, "confidence": answer.confidence, "unfamiliar": answer.unfamiliar,
        "escalated": answer.escalated,
        "finish": answer.finish, "choices": answer.choices, "timings": answer.timings,
    }  # fmt: skip


def finish_reason(answer: Answer) -> str:
    return _FINISH[answer.finish]


def _short(value: object) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (ValueError, RecursionError):
        text = "something"
    text = text.encode(errors="replace").decode()
    return repr(text[:60] + ("…" if len(text) > 60 else ""))
