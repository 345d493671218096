"""A conversation out of a body, handed to the runtime."""

from __future__ import annotations

from typing import Any

from export.runtime.answer import Clock, Stream
from export.runtime.chat import Conversed
from export.runtime.engine import NO_WORDS, Runtime
from export.runtime.messages import Turn
from export.runtime.request import request_of

from .chat import Chat, single_turn
from .fields import LONGEST
from .worker import Worker


def begin(runtime: Runtime, worker: Worker, chat: Chat) -> Stream:
    """The stream of an answer that is as long as was asked for, or as there is room for.

    Raises `MvlmError` for what cannot be answered. To be called in the worker's thread.
    """
    options, clock = dict(chat.options), Clock(chat.options.get("deadline_ms"))
    truncate = options.pop("truncate", None)
    if runtime.manifest.chat is None:
        return _of_before(runtime, worker, chat, options)
    longest = options.pop(LONGEST, runtime.manifest.max_length)
    question = chat.messages[-1].text.strip() or NO_WORDS
    request = request_of(question, chat.scale, options | {LONGEST: longest})
    turns = [
        Conversed(Turn(message.role, message.content, ()), tuple(map(worker.look, message.pictures)))
        for message in chat.messages
    ]
    return runtime.chats.stream(turns, request, clock, truncate, fit=True)


def _of_before(runtime: Runtime, worker: Worker, chat: Chat, options: dict[str, Any]) -> Stream:
    """A bundle without a chat template answers one question about one picture."""
    picture, question = single_turn(chat)
    shortest = request_of(question, chat.scale, options | {LONGEST: 1})
    runtime.require_answerable(shortest)
    room = runtime.manifest.max_length - runtime.positions(shortest) + 1
    longest = min(options.get(LONGEST, room), room)
    return worker.look(picture).stream(question, chat.scale, **(options | {LONGEST: longest}))
