"""A conversation as the runtime takes it: typed messages with pictures in them, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import MvlmError
from .request import Scale, scale_word

if TYPE_CHECKING:
    from .image import Picture
    from .view import View

ROLES = ("system", "user", "assistant")
_MOST_MESSAGES = 1000


@dataclass(frozen=True)
class Turn:
    """One message, as the chat template takes it: its content is a text, or typed parts without what they show.

    `scales` are those that pictures name for themselves, None where one does not; empty where none does.
    """

    role: str
    content: str | tuple[Mapping[str, str], ...]
    pictures: tuple[Picture | View, ...]
    scales: tuple[Scale | None, ...] = ()

    @property
    def text(self) -> str:
        """Its words, without the pictures."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part["text"] for part in self.content if part["type"] == "text")

    def to_template(self, *, parts_only: bool = False) -> dict[str, Any]:
        """The message as chat templates take it; with `parts_only` a text is a list of one part."""
        if not isinstance(self.content, str):
            return {"role": self.role, "content": [dict(part) for part in self.content]}
        return {"role": self.role, "content": [_text(self.content)] if parts_only else self.content}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def read_turns(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Messages as `{"role": …, "content": …}`; content is a text, or a list of `{"type": "text", "text": …}` and
    `{"type": "image", "image": PICTURE}`, where a picture is whatever `Runtime.look` takes, or a view; it may stand
    with a `"scale": SCALE` of its own.

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
    parts, pictures, scales = [], [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": _whole(part["text"], number)})
        elif kind == "image" and part.get("image") is not None and role == "user":
            parts.append({"type": "image"})
            pictures.append(part["image"])
            scales.append(scale_word(part.get("scale")))
        else:
            raise MvlmError(
                f"message {number} holds a part of type {str(kind)[:40]!r}: give text, and image in those of the user",
                code="bad-messages",
            )
    return Turn(role, tuple(parts), tuple(pictures), tuple(scales))


def _whole(text: str, number: int) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MvlmError(f"message {number} holds half a character: send whole ones", code="bad-messages") from None
    return text
