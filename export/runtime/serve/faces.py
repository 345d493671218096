"""How answers look from outside: one `Face` for each way to ask for them, over the same service."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from export.runtime.answer import Answer, Likely
from export.runtime.errors import MvlmError

from .chat import Chat
from .replies import error_body
from .worker import Part

_LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's own way to say that it could not be
_FINISH = {"stop": "stop", "length": "length", "deadline": "length", "stopped": "length"}


@dataclass(frozen=True)
class Usage:
    """Tokens that stand before the answer, how many of these had been read before, and tokens that were written."""

    prompt: int
    cached: int
    completion: int


class Face(Protocol):
    """One answer as a client of some API reads it: whole, or in pieces of a stream."""

    chat: Chat
    media_type: str

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]: ...

    def opening(self) -> Iterator[bytes]: ...

    def piece(self, part: Part) -> Iterator[bytes]: ...

    def closing(self, answers: Sequence[Answer], usage: Usage) -> Iterator[bytes]: ...

    def failed(self, error: MvlmError) -> Iterator[bytes]: ...


@dataclass
class Completion:
    """OpenAI's chat completions."""

    chat: Chat
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    media_type = "text/event-stream"

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        choices = [
            {
                "index": index, "message": {"role": "assistant", "content": answer.text},
                "finish_reason": finish_reason(answer), "logprobs": self._logprobs(answer.logprobs),
            }
            for index, answer in enumerate(answers)
        ]  # fmt: skip
        return self._head("chat.completion") | {
            "choices": choices, "usage": _counts(usage), "mvlm": facts_of(answers[0], self.chat)
        }  # fmt: skip

    def opening(self) -> Iterator[bytes]:
        for index in range(self.chat.count):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, part: Part) -> Iterator[bytes]:
        logprobs = self._logprobs(part.piece.logprobs)
        yield self._chunk(part.index, {"content": part.piece.text}, logprobs=logprobs)

    def closing(self, answers: Sequence[Answer], usage: Usage) -> Iterator[bytes]:
        for index, answer in enumerate(answers):
            yield self._chunk(index, {}, finish_reason(answer), mvlm=facts_of(answer, self.chat))
        if self.chat.with_usage:
            yield event(self._head("chat.completion.chunk") | {"choices": [], "usage": _counts(usage)})
        yield b"data: [DONE]\n\n"

    def failed(self, error: MvlmError) -> Iterator[bytes]:
        yield event(error_body(error))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"object": kind, "id": self.id, "created": self.created, "model": self.chat.model}

    def _logprobs(self, tokens: Sequence[Likely]) -> dict[str, Any] | None:
        """Probabilities as OpenAI has them; None where none are asked for."""
        if "logprobs" not in self.chat.options:
            return None
        return {"content": [likely_token(token) for token in tokens], "refusal": None}

    def _chunk(
        self, index: int, delta: dict[str, str], finish: str | None = None, *,
        logprobs: dict[str, Any] | None = None, **more: Any,
    ) -> bytes:  # fmt: skip
        choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": finish}
        if logprobs:
            choice["logprobs"] = logprobs
        return event(self._head("chat.completion.chunk") | {"choices": [choice], **more})


def likely_token(token: Likely) -> dict[str, Any]:
    """A token of an answer with those that were likeliest in its place."""
    return _token(token.text, token.logprob) | {"top_logprobs": [_token(*other) for other in token.instead]}


def _token(text: str, logprob: float) -> dict[str, Any]:
    whole = "\ufffd" not in text  # bytes of half a character are not known here
    return {"token": text, "logprob": max(logprob, _LEAST_LOGPROB), "bytes": list(text.encode()) if whole else None}


def event(value: dict[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return (head + "data: " + json.dumps(value, ensure_ascii=False) + "\n\n").encode(errors="replace")


def facts_of(answer: Answer, chat: Chat) -> dict[str, Any]:
    """What stands under `mvlm` beside an API's own fields."""
    return {
        "scale": answer.scale, "num_visual_tokens": answer.num_visual_tokens, "views": answer.views,
        "separators": answer.separators, "tiles": [list(grid) for grid in answer.tiles],
        "reason": answer.reason, "probability": answer.probability,
        "probabilities": answer.probabilities, "confidence": answer.confidence,
        "out_of_distribution": answer.out_of_distribution,
        "escalated": answer.escalated, "finish": answer.finish, "choices": answer.choices, "timings": answer.timings,
        "scales": list(answer.scales), "dropped_turns": answer.dropped_turns, "ignored": list(chat.ignored),
    }  # fmt: skip


def finish_reason(answer: Answer) -> str:
    return _FINISH[answer.finish]


def _counts(usage: Usage) -> dict[str, Any]:
    total = usage.prompt + usage.completion
    return {
        "prompt_tokens": usage.prompt, "completion_tokens": usage.completion, "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }  # fmt: skip
