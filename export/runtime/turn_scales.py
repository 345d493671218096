"""At which scale each picture of a conversation is shown: for the questions about it, with a share of what there is.

A picture is shown at the scale that the question of its own turn needs; a later question about it may raise that.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from export.runtime.routing.router import Choice

from .answer import Clock
from .answerer import Answerer
from .errors import MvlmError
from .looked import Looked
from .messages import Turn
from .pictured import Pictured
from .request import AUTO, Request
from .request import Scale as Asked
from .views.scale import Scale, ScaleWord, tokens_said

_CHOICES_KEPT = 1024


@dataclass(frozen=True)
class Conversed:
    """One turn, and its pictures as they were looked at; `scales` are those that pictures name for themselves, None
    where one does not."""

    turn: Turn
    looked: tuple[Looked, ...]
    scales: tuple[Asked | None, ...] = ()

    def asked(self) -> list[tuple[Looked, Asked | None]]:
        """Each picture with the scale that it names."""
        return list(zip(self.looked, self.scales or (None,) * len(self.looked), strict=True))


@dataclass(frozen=True)
class Picked:
    """At which scale a picture is shown, and why; `choice` is None where the scale was named."""

    looked: Looked
    scale: ScaleWord
    choice: Choice | None

    @property
    def shown(self) -> Pictured:
        return self.looked.at(self.scale)


@dataclass(frozen=True)
class Question:
    """A question, and about how many pictures it is."""

    text: str
    pictures: int


class TurnScales:
    """Safe to use from several threads. A choice that was made is remembered, where nothing depends on time."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer, self._finest = answerer, answerer.manifest.finest
        self._choices: OrderedDict[tuple[object, ...], Choice] = OrderedDict()
        self._lock = threading.Lock()

    def picked(self, turns: Sequence[Conversed], request: Request, clock: Clock) -> tuple[Picked, ...]:
        """The scale of each picture, in their order."""
        picked: list[Picked] = []
        for at, turn in enumerate(turns):
            for looked, named in turn.asked():
                scale = request.scale if named is None else named
                if scale == AUTO:
                    picked.append(self._chosen(looked, list(_questions_about(turns, at)), request, clock))
                else:
                    picked.append(Picked(looked, scale, None))
        return tuple(picked)

    def _chosen(self, looked: Looked, questions: Sequence[Question], request: Request, clock: Clock) -> Picked:
        """The finest of the choices for the questions about a picture: what was shown once is not shown in less.

        What the router says of it is of the last question.
        """
        choices = [self._choice(looked, one, request, clock) for one in questions]
        if not choices:  # nobody asked anything in words
            return Picked(looked, self._finest, None)
        last, finest = choices[-1], max(choices, key=lambda choice: Scale.parse(choice.scale).order)
        if finest.scale != last.scale:
            why = f"{tokens_said(finest.scale)}, as an earlier question needed them; this one alone: {last.reason}"
            last = replace(last, scale=finest.scale, cost=finest.cost, reason=why)
        return Picked(looked, last.scale, last)

    def _choice(self, looked: Looked, question: Question, request: Request, clock: Clock) -> Choice:
        """For a question about one of its pictures, with its share of what there is for all of them."""
        request = self._share(request, question.pictures)
        asked = replace(request, question=question.text, scale=AUTO)
        if request.deadline_ms is not None:
            return self._in_time(looked, asked, clock, question.pictures)
        key = (looked.key, question.text, request.terms)
        with self._lock:
            known = self._choices.pop(key, None)
        choice = known or self._answerer.choose(looked, asked, clock)
        with self._lock:
            self._choices[key] = choice
            while len(self._choices) > _CHOICES_KEPT:
                self._choices.popitem(last=False)
        return choice

    def _in_time(self, looked: Looked, asked: Request, clock: Clock, pictures: int) -> Choice:
        """With a deadline: the time that is left is shared as budget and cap are."""
        try:
            return self._answerer.choose(looked, asked, clock.shared(pictures))
        except MvlmError as error:
            if error.code != "deadline" or pictures == 1:
                raise
            raise MvlmError(
                f"each of {pictures} pictures has its share of the time: {error}, or show fewer", code="deadline"
            ) from None

    def _share(self, request: Request, pictures: int) -> Request:
        """A turn's budget and cap as those of each of its pictures, which are chosen for one by one.

        Raises `MvlmError` where there is not enough for all of them.
        """
        router = self._answerer.router
        assert router is not None  # nothing is chosen without
        cheapest = float(router.costs.min())

        def each(name: str, most: float | None) -> float | None:
            if most is None or pictures == 1:
                return most
            if most < pictures * cheapest:
                raise MvlmError(
                    f"a {name} of {most:g} {router.facts.cost_unit} is too little for {pictures} pictures, which cost"
                    f" {cheapest:g} each at least: allow more, or show fewer",
                    code="bad-terms",
                )
            return most / pictures

        return replace(request, budget=each("budget", request.budget), cap=each("cap", request.cap))


def _questions_about(turns: Sequence[Conversed], at: int) -> Iterator[Question]:
    """What users say from a turn's pictures on, until others are shown."""
    for number, turn in enumerate(turns[at:]):
        if number and turn.looked:
            return
        if turn.turn.role == "user" and turn.turn.text.strip():
            yield Question(turn.turn.text, len(turns[at].looked))
