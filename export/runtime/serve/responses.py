"""OpenAI's responses: texts and pictures in, a message out, over the same service as chat completions.

Nothing of a response is kept, so none can be gone on from: send the conversation with every request.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from export.runtime.answer import Answer
from export.runtime.data_url import read_data_url
from export.runtime.errors import MvlmError
from export.runtime.request import Scale

from .body import BadField, read_json, require_text, short
from .chat import Chat, Message, chat_of, pictures_first, read_messages, role_of
from .detail import details_of
from .faces import Usage, event, facts_of, finish_reason
from .limits import Limits
from .replies import error_body
from .worker import Part

_TEXTS = ("input_text", "output_text", "text")
# By another name in chat completions, or read here.
_RENAMED = {"max_output_tokens": "max_completion_tokens"}
_READ = ("input", "instructions", "text", "truncation", "previous_response_id", "conversation", "background")


def read_responses(body: bytes | bytearray, limits: Limits, models: Mapping[str, Scale]) -> Chat:
    """A chat from a body of /v1/responses. Raises `MvlmError` naming what is wrong or cannot be had."""
    value = read_json(body)
    for name in ("previous_response_id", "conversation"):
        if value.get(name) is not None:
            raise BadField(
                f"{name} is not offered here (no response is kept): send the conversation as input", name,
                code="unsupported",
            )  # fmt: skip
    if value.get("background"):
        raise BadField("background is not offered here: leave it out", "background", code="unsupported")
    given = value.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list):
        raise BadField(f"input is {short(given)}: send a text, or a list of messages", "input", code="bad-messages")
    instructions = value.get("instructions")
    system = [{"role": "system", "content": instructions}] if instructions is not None else []
    messages = read_messages([*system, *items], limits, _message)
    return chat_of(_as_completions(value), messages, models)


def _as_completions(value: dict[str, Any]) -> dict[str, Any]:
    """The other fields by their names of chat completions."""
    fields = {_RENAMED.get(name, name): part for name, part in value.items() if name not in _READ}
    text = value.get("text")
    if text is not None and not isinstance(text, dict):
        raise BadField(f"text is {short(text)}: send an object, or leave it out", "text")
    if text and text.get("format") is not None:
        fields["response_format"] = text["format"]
    kept = value.get("truncation")
    if kept not in (None, "auto", "disabled"):
        raise BadField(f"truncation is {short(kept)}: send auto or disabled", "truncation")
    if kept == "auto":
        fields["mvlm"] = {"truncate": "oldest"} | (fields.get("mvlm") or {})
    return fields


def _message(value: object, limits: Limits) -> Message:
    if not isinstance(value, dict) or value.get("type", "message") != "message":
        raise MvlmError(f"an item of the input is {short(value)}: give messages", code="bad-messages")
    role, content = role_of(value.get("role")), value.get("content")
    if isinstance(content, str):
        return Message(role, (require_text(content, "a message"),))
    if not isinstance(content, list):
        raise MvlmError(f"the content of a message is {short(content)}: give a text, or parts", code="bad-messages")
    return Message(role, pictures_first(tuple(_part(part, role, limits) for part in content)), details_of(content))


def _part(part: Any, role: str, limits: Limits) -> str | bytes:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXTS and isinstance(part.get("text"), str):
        return require_text(part["text"], "a message")
    if kind == "input_image" and role == "user":
        return read_data_url(part.get("image_url"), limits.picture_bytes)
    raise MvlmError(
        f"a part of a message is {short(part)}: give input_text, and input_image in those of the user",
        code="bad-messages",
    )


@dataclass
class Responded:
    """An answer as OpenAI's responses have it, or the events that lead to it."""

    chat: Chat
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    item: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    created: float = field(default_factory=time.time)
    media_type = "text/event-stream"
    _number: int = field(default=-1, init=False)

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        answer = answers[0]
        cut = finish_reason(answer) == "length"
        counts = {
            "input_tokens": usage.prompt, "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.completion, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt + usage.completion,
        }  # fmt: skip
        return self._response("incomplete" if cut else "completed", [self._message(answer.text, cut=cut)]) | {
            "usage": counts, "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "mvlm": facts_of(answer, self.chat),
        }  # fmt: skip

    def opening(self) -> Iterator[bytes]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress", []))
        begun = self._message("", cut=False) | {"status": "in_progress", "content": []}
        yield self._event("response.output_item.added", output_index=0, item=begun)
        yield self._part_event("response.content_part.added", part=_text(""))

    def piece(self, part: Part) -> Iterator[bytes]:
        if part.piece.text:
            yield self._part_event("response.output_text.delta", delta=part.piece.text, logprobs=[])

    def closing(self, answers: Sequence[Answer], usage: Usage) -> Iterator[bytes]:
        whole = self.whole(answers, usage)
        yield self._part_event("response.output_text.done", text=answers[0].text, logprobs=[])
        yield self._part_event("response.content_part.done", part=_text(answers[0].text))
        yield self._event("response.output_item.done", output_index=0, item=whole["output"][0])
        yield self._event(f"response.{whole['status']}", response=whole)

    def failed(self, error: MvlmError) -> Iterator[bytes]:
        told = error_body(error)["error"]
        failed = self._response("failed", []) | {"error": {"code": told["type"], "message": told["message"]}}
        yield self._event("response.failed", response=failed)

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        options = self.chat.options
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": None, "instructions": None, "metadata": {}, "model": self.chat.model,
            "output": output, "parallel_tool_calls": False, "temperature": options.get("temperature", 0.0),
            "tool_choice": "none", "tools": [], "top_p": options.get("top_p", 1.0), "store": False,
        }  # fmt: skip

    def _message(self, text: str, *, cut: bool) -> dict[str, Any]:
        status = "incomplete" if cut else "completed"
        return {
            "id": self.item, "type": "message", "role": "assistant", "status": status, "content": [_text(text)]
        }  # fmt: skip

    def _part_event(self, kind: str, **more: Any) -> bytes:
        return self._event(kind, item_id=self.item, output_index=0, content_index=0, **more)

    def _event(self, kind: str, **more: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number} | more, kind)


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
