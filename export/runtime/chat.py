"""Conversations: turns and pictures, rendered by the model's own chat template; what is new of them is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from export.runtime.decode.steps import Steps, alone
from export.runtime.decode.transcript import Memory, Reading, Transcript, Words
from export.runtime.decode.writing import Written
from export.runtime.routing.reasons import named_reason

from .answer import Answer, Clock, Stop, Stream
from .answerer import Answerer
from .chat_template import ChatTemplate
from .chat_text import ChatText, cut_at, spell
from .errors import MvlmError
from .messages import Turn
from .pictured import Pictured
from .request import Request
from .turn_scales import Conversed, Picked, TurnScales
from .views.scale import ScaleWord

Array = NDArray[np.float32]
Truncate = Literal["oldest"] | None
_MEMORY_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Plan:
    """What is to be read, and how long the answer may be."""

    turns: tuple[Conversed, ...]
    picked: tuple[Picked, ...]
    transcript: Transcript
    request: Request
    dropped: int
    shared: bool = False  # whether another answer to the same follows


@dataclass(frozen=True)
class Prepared:
    """An answer whose scales are chosen and whose prompt is laid out; nothing of it has been read yet."""

    answering: Callable[[Plan, Clock, Stop], Steps]
    plan: Plan
    clock: Clock

    def stream(self) -> Stream:
        """The answer in pieces."""
        return Stream(lambda stop: alone(self.steps(stop)))

    def steps(self, stop: Stop) -> Steps:
        return self.answering(self.plan, self.clock, stop)

    def several(self, count: int, stop: Stop) -> tuple[Steps, ...]:
        """The steps of several answers to the same, to be begun in their order: the prompt is read once.

        Where a seed was named, each draws by the next.
        """
        request = self.plan.request
        return tuple(
            self.answering(
                replace(
                    self.plan,
                    request=request if request.seed is None else replace(request, seed=request.seed + number),
                    shared=number < count - 1,
                ),
                self.clock.fork(),
                stop,
            )
            for number in range(count)
        )


class Chats:
    """The conversations of one bundle. Safe to use from several threads."""

    def __init__(self, answerer: Answerer, memory_bytes: int = _MEMORY_BYTES) -> None:
        """`memory_bytes` bounds what is kept of what was read. Raises `MvlmError` for a bundle without a template."""
        manifest = self._manifest = answerer.manifest
        if manifest.chat is None:
            raise MvlmError(
                f"{manifest.folder} holds no chat template: export again, or ask one question about one picture",
                code="no-template",
            )
        text = manifest.path(manifest.chat.template).read_text(encoding="utf-8")
        self._template = ChatTemplate(text, manifest.chat.special_tokens)
        self._text = ChatText(answerer.prompt.tokenizer)
        self._parts_only = not self._template.takes_texts()
        self._answerer = answerer
        self.memory = Memory(answerer.decoder, memory_bytes)
        self._scales = TurnScales(answerer)

    def prepare(
        self,
        turns: Sequence[Conversed],
        request: Request,
        clock: Clock,
        truncate: Truncate = None,
        *,
        fit: bool = False,
    ) -> Prepared:
        """The answer to the last turn; what cannot be answered is refused here, before anything is read, and tiles that
        are to be read are encoded.

        `request.question` is not looked at. With `fit` a longest answer that finds no room becomes one that does.
        """
        if truncate not in (None, "oldest"):
            raise MvlmError(f"truncate is {truncate!r}: name oldest, or leave it out", code="bad-option")
        plan = self._plan(tuple(turns), request, clock, truncate, fit)
        if self._manifest.many_views:
            self._encode(plan.transcript, clock)
        return Prepared(self._answering, plan, clock)

    def ids(self, turns: Sequence[Turn]) -> list[int]:
        """The ids of a conversation, ready for an answer, with one placeholder for each picture."""
        told = [turn.to_template(parts_only=self._parts_only) for turn in turns]
        messages = [spell(message, self._text.special) for message in told]
        return self._text.ids(self._template.render(messages))

    # What is read

    def _plan(
        self, turns: tuple[Conversed, ...], request: Request, clock: Clock, truncate: Truncate, fit: bool
    ) -> Plan:
        self._answerer.require_tokens(request)
        self._answerer.require_writable(request)
        for scale in dict.fromkeys(named for turn in turns for _, named in turn.asked()):
            self._answerer.require_offered(request if scale is None else replace(request, scale=scale))
        picked, dropped = self._scales.picked(turns, request, clock), 0
        while True:
            transcript = self._transcript(turns, picked)
            left = self._manifest.max_length - len(transcript)
            room = self._answerer.room(request)
            if fit and not request.choices and 0 < left < room:
                request = replace(request, max_new_tokens=left)
            elif left < room:
                shorter = _without_oldest(turns) if truncate else None
                if shorter is None:
                    raise self._too_long(len(transcript), request, picked, alone=_without_oldest(turns) is None)
                dropped += len(turns) - len(shorter)
                picked = picked[len(picked) - sum(len(turn.looked) for turn in shorter) :]
                turns = shorter
                continue
            return Plan(turns, picked, transcript, request, dropped)

    def _too_long(self, length: int, request: Request, picked: Sequence[Picked], *, alone: bool) -> MvlmError:
        shown = sum(len(picture.shown) for picture in picked)
        room, most = self._answerer.room(request), self._manifest.max_length
        way = "leave out earlier turns, or pictures, or name a coarser scale"
        if alone or length < most:
            way = self._answerer.way_out(request, length, shown)
        return MvlmError(
            f"the conversation has {length} tokens, {shown} of them pictures, and with an answer of {room} it does not"
            f" fit the decoder's {most} positions: {way}",
            code="too-long",
        )

    def _transcript(self, turns: Sequence[Conversed], picked: Sequence[Picked]) -> Transcript:
        ids = self.ids([turn.turn for turn in turns])
        words = cut_at(ids, self._manifest.image_token_id)
        if len(words) != len(picked) + 1:
            raise MvlmError(
                f"the chat template shows {len(words) - 1} of {len(picked)} pictures: pictures stand where it does not"
                " look for them",
                code="bad-messages",
            )
        parts: list[Words | Pictured] = [Words(tuple(words[0]))]
        for picture, behind in zip(picked, words[1:], strict=True):
            parts += [picture.shown, Words(tuple(behind))]
        return Transcript(tuple(part for part in parts if len(part)))

    def _encode(self, transcript: Transcript, clock: Clock) -> None:
        """Encode the tiles that are to be read, here and not where the tokens of others wait for it."""
        known, place = self.memory.known(transcript.identities()), 0
        for part in transcript.parts:
            if isinstance(part, Pictured):
                part.encode(max(0, known - place), clock)
            place += len(part)

    # The answer

    def _answering(self, plan: Plan, clock: Clock, stop: Stop) -> Steps:
        answerer, new, written = self._answerer, 0, Written(finish="stopped")
        escalated: ScaleWord | None = None
        while not stop.now:
            keys = plan.transcript.identities()
            with (
                self.memory.borrow(keys, len(keys) + answerer.room(plan.request)) as held,
                Reading(answerer.decoder, answerer.table.rows, held) as reading,
            ):
                logits = yield from reading.read(plan.transcript, clock)
                if plan.shared:
                    self.memory.keep_copy(held)
                new += reading.new
                closer = self._closer(plan, logits) if escalated is None else None
                if closer is None:
                    said = plan.transcript.ids()
                    written = yield from answerer.write(reading, logits, plan.request, clock, stop, said)
                    break
            escalated, plan = plan.picked[-1].scale, closer
        return self._answer(plan, written, clock, escalated, new)

    def _closer(self, plan: Plan, logits: Array) -> Plan | None:
        """The same with the last picture shown at a finer scale, where its first token was not sure enough."""
        last = plan.picked[-1] if plan.turns[-1].looked else None
        if last is None or last.choice is None:
            return None
        closer = self._answerer.escalate(last.choice, logits, last.looked)
        if closer is None:
            return None
        picked = (*plan.picked[:-1], Picked(last.looked, closer.scale, closer))
        transcript = self._transcript(plan.turns, picked)
        if len(transcript) + self._answerer.room(plan.request) > self._manifest.max_length:
            return None
        return replace(plan, picked=picked, transcript=transcript)

    def _answer(self, plan: Plan, written: Written, clock: Clock, escalated: ScaleWord | None, new: int) -> Answer:
        last = plan.picked[-1] if plan.picked else None
        choice = last.choice if last else None
        timings: dict[str, float] = {}
        laid = [picture.shown.laid for picture in plan.picked]
        visual = sum(one.num_visual_tokens for one in laid)
        for turn in plan.turns[-1:]:
            for looked in turn.looked:
                timings = _added(timings, looked.timings)
        return Answer(
            text=written.text,
            num_visual_tokens=visual,
            scale=last.scale if last else None,
            views=sum(one.views for one in laid),
            separators=sum(map(len, laid)) - visual,
            tiles=tuple(one.tiles for one in laid),
            reason="no picture is shown" if last is None else choice.reason if choice else named_reason(last.scale),
            probability=choice.probabilities[choice.scale] if choice else None,
            probabilities=choice.probabilities if choice else {},
            confidence=written.confidence,
            out_of_distribution=choice.out_of_distribution if choice else False,
            escalated=escalated,
            finish=written.finish,
            choices=written.choices,
            token_ids=tuple(written.token_ids),
            logprobs=tuple(written.logprobs),
            timings=clock.since(timings),
            scales=tuple(picture.scale for picture in plan.picked),
            prompt_tokens=len(plan.transcript),
            new_tokens=new,
            dropped_turns=plan.dropped,
        )


def _without_oldest(turns: tuple[Conversed, ...]) -> tuple[Conversed, ...] | None:
    """A conversation without its oldest question and what was answered; None where only the last one is left."""
    first = next(at for at, turn in enumerate(turns) if turn.turn.role != "system")
    following = next((at for at in range(first + 1, len(turns)) if turns[at].turn.role == "user"), None)
    if following is None:
        return None
    kept = [turn for turn in turns[first:following] if turn.turn.role == "system"]
    return (*turns[:first], *kept, *turns[following:])


def _added(some: dict[str, float], more: dict[str, float]) -> dict[str, float]:
    return {
        stage: some.get(stage, 0.0) + more.get(stage, 0.0) for stage in [*some, *(s for s in more if s not in some)]
    }
