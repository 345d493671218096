"""A conversation as the runtime takes it: typed messages with pictures in them, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import MvlmError

if TYPE_CHECKING:
    from .image import Picture
    from .view import View

ROLES = ("system", "user", "assistant")
_MOST_MESSAGES = 1000


@dataclass(frozen=True)
class Turn:
    """One message, as the chat template takes it: its content is a text, or typed parts without what they show."""

    role: str
    content: str | tuple[Mapping[str, str], ...]
    pictures: tuple[Picture | View, ...]

    @property
    def text(self) -> str:
        """Its words, without the pictures."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part["text"] for part in self.content if part["type"] == "text")

    def to_template(self) -> dict[str, Any]:
        content = self.content if isinstance(self.content, str) else [dict(part) for part in self.content]
        return {"role": self.role, "content": content}


def read_turns(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Messages as `{"role": …, "content": …}`; content is a text, or a list of `{"type": "text", "text": …}` and
    `{"type": "image", "image": PICTURE}`, where a picture is whatever `Runtime.look` takes, or a view.

    Raises `MvlmError` unless these are messages of system, user and assistant, the last one the user's.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise MvlmError("there are no messages: give a list of them, the last one the user's", code="bad-messages")
    if len(messages) > _MOST_MESSAGES:
        raise MvlmError(f"there are {len(messages)} messages: at most {_MOST_MESSAGES} are read", code="too-long")
    turns = tuple(_turn(message, number) for number, message in enumerate(messages, 1))
    last = turns[-1]
    if last.role != "user":
        raise MvlmError(
            f"the last message is the {last.role}'s: end with the user's, to be answered", code="bad-messages"
        )
    if not last.text.strip() and not last.pictures:
        raise MvlmError("the last message is empty: ask something", code="empty-question")
    return turns


def _turn(message: Any, number: int) -> Turn:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        raise MvlmError(
            f"message {number} has the role {str(role)[:40]!r}: name one of {', '.join(ROLES)}", code="bad-messages"
        )
    content = message.get("content")
    if isinstance(content, str):
        return Turn(role, _whole(content, number), ())
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise MvlmError(
            f"message {number} has no content: give a text, or a list of texts and images", code="bad-messages"
        )
    parts, pictures = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": _whole(part["text"], number)})
        elif kind == "image" and part.get("image") is not None and role == "user":
            parts.append({"type": "image"})
            pictures.append(part["image"])
        else:
            raise MvlmError(
                f"message {number} holds a part of type {str(kind)[:40]!r}: give text, and image in those of the user",
                code="bad-messages",
            )
    return Turn(role, tuple(parts), tuple(pictures))


def _whole(text: str, number: int) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MvlmError(f"message {number} holds half a character: send whole ones", code="bad-messages") from None
    return text
