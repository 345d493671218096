"""A bundle answers what a benchmark asks, through the runtime that a device has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from export.runtime import Runtime, View
from export.runtime.answer import Clock
from export.runtime.decode.conversation import Conversation
from export.runtime.decode.sampling import log_softmax
from export.runtime.errors import MvlmError
from export.runtime.request import Request
from export.runtime.views.scale import ScaleWord

from .sample import Asked, Likelihood, Said, Scale


class BundleAnswerer:
    """A bundle at one of its scales, or at what its router chooses. One picture and one question at a time."""

    def __init__(self, runtime: Runtime, scale: Scale) -> None:
        offered = ", ".join(map(str, runtime.manifest.scales))
        if scale == "auto" and runtime.router is None:
            raise MvlmError(f"this bundle holds no router: name a scale, one of {offered}", code="no-router")
        if scale != "auto" and scale not in runtime.manifest.scales:
            raise MvlmError(f"this bundle has no scale {scale}: name one of {offered}, or auto", code="bad-scale")
        self.runtime, self.scale = runtime, scale

    @classmethod
    def load(cls, bundle: Path, scale: Scale, provider: str, threads: int | None) -> BundleAnswerer:
        return cls(Runtime.load(bundle, provider, threads), scale)

    def answer(self, asked: Sequence[Asked], max_new_tokens: int, until: Sequence[str]) -> list[Said]:
        return [self._answer(sample, max_new_tokens, until) for sample in asked]

    def _answer(self, asked: Asked, max_new_tokens: int, until: Sequence[str]) -> Said:
        if not _is_one(asked):
            return self._converse(asked, max_new_tokens, until)
        view = self.runtime.look(asked.pictures[0])
        answer = view.ask(asked.question, self.scale, max_new_tokens=max_new_tokens, stop=tuple(until))
        return Said(answer.text.strip(), (answer.num_visual_tokens,))

    def _converse(self, asked: Asked, max_new_tokens: int, until: Sequence[str]) -> Said:
        """The answer to a conversation, by the bundle's chat template."""
        pictures = iter(asked.pictures)
        messages = [
            message | {
                "content": [
                    part if part["type"] == "text" else {"type": "image", "image": next(pictures)}
                    for part in message["content"]
                ]
            }
            for message in asked.messages
        ]  # fmt: skip
        answer = self.runtime.chat(messages, self.scale, max_new_tokens=max_new_tokens, stop=tuple(until))
        each = tuple(scale for scale in answer.scales if isinstance(scale, int))
        # With tiles it is known of all pictures together.
        return Said(answer.text.strip(), each if len(each) == len(answer.scales) else (answer.num_visual_tokens,))

    def likelihood(self, asked: Asked, answers: Sequence[str]) -> list[Likelihood]:
        if not _is_one(asked):
            raise MvlmError(
                f"it shows {len(asked.pictures)} pictures in {len(asked.messages)} messages, and a bundle scores given"
                " answers to one question about one picture before it: evaluate the run"
            )
        view = self.runtime.look(asked.pictures[0])
        m = view.choose(asked.question).scale if self.scale == "auto" else self.scale
        return [self._likelihood(view, asked.question, m, answer.strip()) for answer in answers]

    def _likelihood(self, view: View, question: str, m: ScaleWord, answer: str) -> Likelihood:
        """Of the likelier spelling: whether a space stands before an answer is the chat template's affair."""
        ways = [tuple(self.runtime.prompt.text_ids(text)) for text in (f" {answer}", answer)]
        if not all(ways):
            raise MvlmError("the answer to score is empty: a task must give words")
        room = max(map(len, ways))
        self.runtime.require_answerable(Request(question, m, max_new_tokens=room), view)
        with view.shelf.borrow(m) as conversation:
            logits = conversation.ask(question, m, room, Clock()).copy()  # a step writes the next over them
            here = conversation.used
            scored = []
            for ids in dict.fromkeys(ways):
                scored.append(_teacher_forced(conversation, logits, ids, self.runtime.manifest.stop_ids))
                conversation.rewind(here)
        loss, greedy = min(scored)
        return Likelihood(loss, greedy, (view.at(m).laid.num_visual_tokens,))


def _teacher_forced(
    conversation: Conversation, logits: np.ndarray, ids: tuple[int, ...], stop_ids: frozenset[int]
) -> tuple[float, bool]:
    """Mean nats of an answer and the token that ends it, after a prompt's logits (V,), and whether greedy gives it."""
    nats, greedy = 0.0, True
    for token in ids:
        nats -= float(log_softmax(logits)[token])
        greedy = greedy and int(logits.argmax()) == token
        logits = conversation.follow(token)
    ends = log_softmax(logits)[sorted(stop_ids)]
    nats -= float(ends.max())
    return nats / (len(ids) + 1), greedy and int(logits.argmax()) in stop_ids


def _is_one(asked: Asked) -> bool:
    """Whether it is one question about one picture before it."""
    kinds = [part["type"] for part in asked.messages[-1]["content"]]
    return len(asked.messages) == 1 and len(asked.pictures) == 1 and kinds[0] == "image"
