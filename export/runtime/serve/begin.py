"""A conversation out of a body, handed to the runtime."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from export.runtime.answer import Answer, Clock, Stop
from export.runtime.decode.steps import Piece, Steps
from export.runtime.engine import NO_WORDS, Runtime
from export.runtime.messages import Turn
from export.runtime.request import Scale, request_of
from export.runtime.turn_scales import Conversed

from .chat import Chat, Message, single_turn
from .detail import scale_of_detail
from .fields import LONGEST
from .worker import Begun, Worker


def begin(runtime: Runtime, worker: Worker, chat: Chat) -> Begun:
    """Answers that are as long as was asked for, or as there is room for.

    Raises `MvlmError` for what cannot be answered. To be called in the thread that prepares.
    """
    options, clock, stop = dict(chat.options), Clock(chat.options.get("deadline_ms")), Stop()
    truncate = options.pop("truncate", None)
    if runtime.manifest.chat is None:
        return Begun(tuple(_of_before(runtime, worker, chat, options, stop) for _ in range(chat.count)), stop)
    longest = options.pop(LONGEST, runtime.manifest.max_length)
    question = chat.messages[-1].text.strip() or NO_WORDS
    request = request_of(question, chat.scale, options | {LONGEST: longest})
    turns = [
        Conversed(
            Turn(message.role, message.content, ()), tuple(map(worker.look, message.pictures)),
            _scales(runtime, chat, message),
        )
        for message in chat.messages
    ]  # fmt: skip
    prepared = runtime.chats.prepare(turns, request, clock, truncate, fit=True)
    return Begun(prepared.several(chat.count, stop), stop)


def _scales(runtime: Runtime, chat: Chat, message: Message) -> tuple[Scale | None, ...]:
    """What the details of a message's pictures stand for; where a scale was named, they say nothing."""
    scales = runtime.manifest.scales if chat.scale == "auto" else ()
    return tuple(scale_of_detail(detail, scales) if scales else None for detail in message.details)


def _of_before(runtime: Runtime, worker: Worker, chat: Chat, options: dict[str, Any], stop: Stop) -> Steps:
    """A bundle without a chat template answers one question about one picture, and all of it in one step."""
    picture, question = single_turn(chat)
    scale: Scale = next((scale for scale in _scales(runtime, chat, chat.messages[-1]) if scale), chat.scale)
    shortest = request_of(question, scale, options | {LONGEST: 1})
    runtime.require_answerable(shortest)
    room = runtime.manifest.max_length - runtime.positions(shortest) + 1
    request = request_of(question, scale, options | {LONGEST: min(options.get(LONGEST, room), room)})
    runtime.require_answerable(request)
    return _pieces(runtime.answering(worker.look(picture), request, Clock(request.deadline_ms), stop))


def _pieces(answering: Generator[str, None, Answer]) -> Steps:
    while True:
        try:
            piece = next(answering)
        except StopIteration as end:
            answer: Answer = end.value
            return answer
        yield Piece(piece)
