"""What a benchmark asks, and what is said to it: the same for a run in torch and for a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from export.runtime.errors import MvlmError
from export.runtime.image import Picture

Scale = int | Literal["auto"]


@dataclass(frozen=True)
class Asked:
    """One sample: chat messages with typed content, and the pictures in the order of their places there."""

    messages: tuple[dict[str, Any], ...]
    pictures: tuple[Picture, ...]

    @property
    def question(self) -> str:
        """All that is said in words by the last to speak: what the router reads."""
        return "\n".join(part["text"] for part in self.messages[-1]["content"] if part["type"] == "text")


@dataclass(frozen=True)
class Said:
    """An answer, and in how many tokens each picture was shown for it."""

    text: str
    num_visual_tokens: tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """How likely a given answer is.

    Attributes:
        loss: mean nats of the answer's tokens, the one that ends it included; what training minimises.
        greedy: whether each of these tokens is the likeliest where it stands.
    """

    loss: float
    greedy: bool
    num_visual_tokens: tuple[int, ...]


class Answerer(Protocol):
    """A model at a scale, or with a router that chooses one."""

    def answer(self, asked: Sequence[Asked], max_new_tokens: int, until: Sequence[str]) -> list[Said]:
        """Greedy answers, each cut where a text of `until` begins."""

    def likelihood(self, asked: Asked, answers: Sequence[str]) -> list[Likelihood]:
        """How likely each of several answers to one sample is."""


def read_messages(messages: Iterable[dict[str, Any]]) -> Asked:
    """A sample in lmms-eval's chat form. Raises `MvlmError` for media other than pictures."""
    told, pictures = [], []
    for message in messages:
        content = []
        for part in message["content"]:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
            elif part["type"] == "image":
                pictures.append(part["url"])
                content.append({"type": "image"})
            else:
                raise MvlmError(f"it shows {part['type']}, and only pictures are looked at: leave the task out")
        told.append({"role": message["role"], "content": content})
    return Asked(tuple(told), tuple(pictures))


def one_turn(pictures: Sequence[Picture], text: str) -> Asked:
    """Pictures with a text behind them."""
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
    return Asked(({"role": "user", "content": content},), tuple(pictures))


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of `until` that stands in it."""
    return text[: min((place for stop in until if (place := text.find(stop)) >= 0), default=len(text))]
