"""What a row of data is: pictures, and turns of questions and answers with the pictures in place. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from export.runtime.errors import MvlmError
from mvlm_core.scoring import Reference

from .pictures import PictureSource

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class PicturePlace:
    """Where a picture stands in a question; `number` counts in the pictures of the row."""

    number: int


@dataclass(frozen=True)
class Turn:
    """A question, with its pictures in place, and the answers that are right. The first is the one to learn.

    `answers` are synonyms, `votes` what several people answered, `options` those of multiple choice. A question that
    is only asked has none of them.
    """

    content: tuple[str | PicturePlace, ...]
    answers: tuple[str, ...]
    votes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Within:
    """A conversation that ends with the question in question, and the number of the picture that it is about."""

    row: Row
    number: int


@dataclass(frozen=True)
class Row:
    """One conversation about any number of pictures, which stand in its turns in their order, each once.

    Rows that share `group` stay in one split: those about one picture do, unless the data says otherwise. `within`
    says where the single question of a row stands, if not alone: what labels tell of it is so of that conversation.
    """

    id: str
    pictures: tuple[PictureSource, ...]
    turns: tuple[Turn, ...]
    task: str | None
    group: str
    split: str
    system: str | None = None
    metric: str | None = None
    within: Within | None = None

    @property
    def image(self) -> PictureSource:
        """The picture of a row that asks one question about one. Raises `MvlmError` for any other row."""
        self._single()
        return self.pictures[0]

    @property
    def question(self) -> str:
        """The question of a row that asks one about one picture. Raises `MvlmError` for any other row."""
        return self._single()

    @property
    def answers(self) -> tuple[str, ...]:
        """What answers the question of a row that asks one about one picture. Raises `MvlmError` for any other row."""
        self._single()
        return self.turns[0].answers

    @property
    def reference(self) -> Reference:
        """What an answer to the question of a row that asks one about one picture is held against."""
        self._single()
        return Reference(self.turns[0].answers, self.turns[0].votes, self.turns[0].options)

    @property
    def has_clip(self) -> bool:
        """Whether it is about a clip, and not about pictures."""
        return any(hasattr(type(picture), "frames") for picture in self.pictures)

    def _single(self) -> str:
        if len(self.turns) == 1 and self.system is None:
            match self.turns[0].content:
                case (PicturePlace(), str(question)):
                    return question
        raise MvlmError(f"id {self.id}: not one question behind one picture, which is all that can be asked here")

    def texts(self) -> list[str]:
        """Every text of the row: what a tokenizer is trained on."""
        told = [] if self.system is None else [self.system]
        for turn in self.turns:
            told += [*(part for part in turn.content if isinstance(part, str)), *turn.answers]
        return told

    def messages(self) -> list[dict[str, Any]]:
        """The row as chat messages with typed content, each question followed by its first answer."""
        told = [] if self.system is None else [_message("system", (self.system,))]
        for turn in self.turns:
            told += [_message("user", turn.content), _message("assistant", turn.answers[:1])]
        return told


def _message(role: str, content: Sequence[str | PicturePlace]) -> dict[str, Any]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in content]
    return {"role": role, "content": parts}


def single_questions(rows: Sequence[Row]) -> list[Row]:
    """Rows that each ask one question about one picture: a conversation about a picture becomes one row a question.

    Those get `#0`, `#1` and so on behind the id, and the picture in front of each. Raises `MvlmError` naming the rows
    that are not about one picture, and those with a system text or with a picture behind words.
    """
    found, others = asked_by(rows, questions_of)
    if others:
        raise MvlmError(
            f"{len(others)} rows are not questions about one picture that stands before them (id {', '.join(others)}):"
            " leave them out of the splits that are asked one by one"
        )
    return found


def asked_by(rows: Sequence[Row], questions: Callable[[Row], list[Row]]) -> tuple[list[Row], list[str]]:
    """All that some rows ask, and the ids of those that ask nothing so."""
    split = [(row, questions(row)) for row in rows]
    return [one for _, some in split for one in some], [row.id for row, some in split if not some]


def questions_of(row: Row) -> list[Row]:
    """The questions of a row about one picture as rows of their own; of any other row, none."""
    if len(row.pictures) != 1 or row.system is not None:
        return []
    place = PicturePlace(0)
    asked = [tuple(part for part in turn.content if part != place) for turn in row.turns]
    if row.turns[0].content[0] != place or any(len(words) != 1 for words in asked):
        return []
    name = "{id}" if len(asked) == 1 else "{id}#{number}"
    return [
        replace(row, id=name.format(id=row.id, number=number), turns=(replace(turn, content=(place, *words)),))
        for number, (words, turn) in enumerate(zip(asked, row.turns, strict=True))
    ]


def require_answers(rows: Sequence[Row]) -> None:
    """Raise `MvlmError` naming the rows with a question that nothing answers: they can be asked, but not learned."""
    bare = [row.id for row in rows if not all(turn.answers for turn in row.turns)]
    if bare:
        named = ", ".join(bare[:8]) + (f" and {len(bare) - 8} more" if len(bare) > 8 else "")
        raise MvlmError(
            f"{len(bare)} rows to train on have no answers (id {named}): give them answers, or another split, where"
            " they can be labelled by agreement"
        )
