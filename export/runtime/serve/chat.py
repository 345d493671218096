"""OpenAI's chat completions: a body in, a conversation out.

What the body asks for and cannot be had is refused by name; what changes nothing is left out, and said to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from export.runtime.data_url import read_data_url
from export.runtime.errors import MvlmError
from export.runtime.request import Scale

from .body import read_json, require_text, short, switch
from .detail import AUTO as ANY_DETAIL
from .detail import details_of
from .fields import answer_count, read_options, scale_of
from .limits import Limits

AUTO = "mvlm-auto"
_PREFIX = "mvlm-"
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MOST_MESSAGES = 1000


@dataclass(frozen=True)
class Message:
    """One turn: who speaks, the texts (str) and pictures (bytes) in their order, and the `detail` of each picture."""

    role: str
    parts: tuple[str | bytes, ...]
    details: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def content(self) -> str | tuple[dict[str, str], ...]:
        """A text, or typed parts, for the chat template."""
        if len(self.parts) == 1 and isinstance(self.parts[0], str):
            return self.parts[0]
        typed = ({"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in self.parts)
        return tuple(typed)

    @property
    def pictures(self) -> tuple[bytes, ...]:
        return tuple(part for part in self.parts if isinstance(part, bytes))


@dataclass(frozen=True)
class Chat:
    """A conversation whose last turn is the user's, and how to answer it."""

    model: str
    messages: tuple[Message, ...]
    scale: Scale
    options: dict[str, Any]
    stream: bool
    with_usage: bool
    ignored: tuple[str, ...]
    count: int = 1  # answers


def model_names(scales: Sequence[Scale], *, routed: bool, own: str | None = None) -> dict[str, Scale]:
    """The scale that each name stands for: `mvlm-auto` where a router chooses, and a name for each scale, coarse to
    fine.

    `own` is one that the owner of the server likes better: it stands for what the router chooses, or the finest scale.
    """
    named: dict[str, Scale] = {AUTO: "auto"} if routed else {}
    mine: dict[str, Scale] = {own: "auto" if routed else scales[-1]} if own else {}
    return mine | named | {f"{_PREFIX}{scale}": scale for scale in scales}


def read_chat(body: bytes | bytearray, limits: Limits, models: Mapping[str, Scale]) -> Chat:
    """A chat from a body. Raises `MvlmError` naming what is wrong or cannot be had."""
    value = read_json(body)
    return chat_of(value, read_messages(value.get("messages"), limits), models)


def chat_of(value: dict[str, Any], messages: tuple[Message, ...], models: Mapping[str, Scale]) -> Chat:
    """A chat from its messages and the other fields of a body. Raises `MvlmError`."""
    options, ignored = read_options(value)
    scale = scale_of(models, value.get("model"), options.pop("scale", None))
    if scale != "auto" and any(set(message.details) - {ANY_DETAIL} for message in messages):
        ignored = sorted([*ignored, "detail"])  # a scale was named
    more = value.get("stream_options") or {}
    if not isinstance(more, dict):
        raise MvlmError(f"stream_options is {short(more)}: send an object, or leave it out", code="bad-option")
    usage = switch(more, "include_usage", "stream_options.")
    count = answer_count(value)
    return Chat(str(value["model"]), messages, scale, options, switch(value, "stream"), usage, tuple(ignored), count)


def read_messages(
    value: object, limits: Limits, read: Callable[[object, Limits], Message] | None = None
) -> tuple[Message, ...]:
    """The turns of a conversation, each by `read` (OpenAI's way, unless another is given).

    Raises `MvlmError` for none, for too much, and for what is no text or picture.
    """
    if not isinstance(value, list) or not value:
        raise MvlmError("messages holds no message: send a list of them, the last one the user's", code="bad-messages")
    if len(value) > _MOST_MESSAGES:
        raise MvlmError(f"messages holds {len(value)} messages: at most {_MOST_MESSAGES} are read", code="too-long")
    messages = tuple((read or _message)(part, limits) for part in value)
    if messages[-1].role != "user":
        raise MvlmError(
            f"the last message is the {messages[-1].role}'s: end with the user's, to be answered",
            code="bad-messages",
        )
    if not messages[-1].text.strip() and not messages[-1].pictures:
        raise MvlmError("the last message is empty: ask something", code="empty-question")
    require_bounded(messages, limits)
    return messages


def require_bounded(messages: Sequence[Message], limits: Limits) -> None:
    """Raise `MvlmError` for more text or pictures than are allowed."""
    characters = sum(len(message.text) for message in messages)
    if characters > limits.question_characters:
        raise MvlmError(
            f"the texts have {characters} characters: at most {limits.question_characters} are read", code="too-long"
        )
    pictures = sum(len(message.pictures) for message in messages)
    if pictures > limits.pictures:
        raise MvlmError(f"the messages hold {pictures} pictures: at most {limits.pictures} are read", code="too-long")


def role_of(role: object) -> str:
    """Who speaks. Raises `MvlmError`."""
    if not isinstance(role, str) or role not in _ROLES:
        raise MvlmError(f"the role of a message is {short(role)}: name one of {', '.join(_ROLES)}", code="bad-messages")
    return _ROLES[role]


def _message(value: object, limits: Limits) -> Message:
    if not isinstance(value, dict):
        raise MvlmError(f"a message is {short(value)}: give role and content", code="bad-messages")
    role = role_of(value.get("role"))
    if value.get("tool_calls") or value.get("function_call"):
        raise MvlmError("a message holds tool_calls: no tool is called here", code="unsupported")
    content = value.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, str):
        return Message(role, (require_text(content, "a message"),))
    if not isinstance(content, list):
        raise MvlmError(f"the content of a message is {short(content)}: give a text, or parts", code="bad-messages")
    parts = tuple(_part(part, role, limits) for part in content)
    return Message(role, pictures_first(parts), details_of(content))


def _part(part: Any, role: str, limits: Limits) -> str | bytes:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return require_text(part["text"], "a message")
    if kind == "image_url" and role == "user":
        image = part.get("image_url")
        return read_data_url(image.get("url") if isinstance(image, dict) else image, limits.picture_bytes)
    if kind == "image_url":
        raise MvlmError(f"a picture stands in a message of the {role}: only users show pictures", code="bad-messages")
    raise MvlmError(f"a part of a message is {short(part)}: give text and image_url", code="bad-messages")


def pictures_first(parts: tuple[str | bytes, ...]) -> tuple[str | bytes, ...]:
    """Pictures before the text, as models are trained; where texts stand between pictures, the order says something."""
    kinds = [isinstance(part, bytes) for part in parts]
    changes = sum(a != b for a, b in pairwise(kinds))
    return parts if changes > 1 else tuple(sorted(parts, key=lambda part: isinstance(part, str)))


def single_turn(chat: Chat) -> tuple[bytes, str]:
    """The picture and the question of a chat of one turn."""
    last = chat.messages[-1]
    if len(chat.messages) > 1 or len(last.pictures) != 1 or not last.text:
        raise MvlmError(
            f"the chat holds {len(chat.messages)} messages and {len(last.pictures)} pictures: ask one question about"
            " one picture",
            code="bad-messages",
        )
    return last.pictures[0], last.text
