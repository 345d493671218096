"""What one server allows: how much of everything that a caller could ask for, hold or leave half done."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from export.runtime.decode.desk import STALL_MS
from export.runtime.decode.shared import MOST


@dataclass(frozen=True)
class Limits:
    """What callers may ask of a server, and for how long they may hold a part of it.

    Attributes:
        queue: questions that wait for the model; one more is told to ask again later (429).
        together: answers that are written at once, where the decoder takes several conversations.
        stall_ms: for which a prompt that is being read keeps the next token of others waiting, as far as the pace of
            the pieces before foretells it.
        body_bytes, picture_bytes: of one request.
        bytes_in_flight: of all bodies together, from before the first byte is read until the answer has ended.
        pixels: of one picture.
        pictures: in one conversation.
        question_characters: of all texts of one request.
        seconds: from a question to the end of its answer.
        connections: open at once. The one that is idle for longest gives way to a new one.
        head_seconds, body_seconds: until a request's head, or body, has arrived whole.
        stalled_seconds: for which a caller may leave an answer unread.
    """

    queue: int = 16
    together: int = MOST
    stall_ms: float = STALL_MS
    body_bytes: int = 24 * 2**20
    picture_bytes: int = 16 * 2**20
    bytes_in_flight: int = 96 * 2**20
    pixels: int = 32_000_000
    pictures: int = 32
    question_characters: int = 64_000
    seconds: float = 300.0
    connections: int = 512
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    stalled_seconds: float = 30.0


@dataclass(frozen=True)
class Settings:
    """Where to listen, who may ask, and how much. `log` gets a JSON line a request, without what was asked.

    `model_name` is one more name for the model, the first in the list. Pages of `origins` (`https://example.org`) may
    ask from a browser.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    limits: Limits = field(default_factory=Limits)
    log: Path | None = None
    model_name: str | None = None
    origins: tuple[str, ...] = ()
