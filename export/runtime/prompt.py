"""How a question becomes ids: one definition, derived from the chat template when a bundle is made.

The template itself needs Jinja and the processor; what it amounts to for one question about one picture is a few
ids, the place of the picture, and the text that holds the question. That is all the device keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import Metaspace

from .errors import MvlmError

_SPACE = "\u2581"  # how vocabularies of sentencepiece spell the space before a word


@dataclass(frozen=True)
class FixedIds:
    """What stands there whatever is asked."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class ImagePlace:
    """Where the visual tokens go."""


@dataclass(frozen=True)
class QuestionText:
    """The text between two special tokens that holds the question. It is encoded as one piece."""

    before: str
    after: str


Part = FixedIds | ImagePlace | QuestionText


def reader_of_pieces(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that encodes a piece of text as it is encoded behind a special token; special tokens in it stay text."""
    reader = Tokenizer.from_str(tokenizer.to_str())
    # Llama's tokenizers put a space in front of the first piece of a text, and of no other.
    if isinstance(reader.pre_tokenizer, Metaspace) and reader.pre_tokenizer.prepend_scheme == "first":
        reader.pre_tokenizer.prepend_scheme = "never"
    reader.encode_special_tokens = True
    reader.no_padding()
    reader.no_truncation()
    return reader


class Prompt:
    """One question about one picture as ids. A special token written out in a question, `<image>` say, stays text."""

    def __init__(self, parts: Sequence[Part], tokenizer: Tokenizer) -> None:
        """Copies `tokenizer`. Raises `MvlmError` unless there is one place for the picture and one for the question."""
        kinds = [type(part) for part in parts]
        if kinds.count(ImagePlace) != 1 or kinds.count(QuestionText) != 1:
            raise MvlmError(
                f"the prompt has {kinds.count(ImagePlace)} places for a picture and {kinds.count(QuestionText)} for a"
                " question: a chat template must show each once"
            )
        self.parts = tuple(parts)
        self._question = next(part for part in parts if isinstance(part, QuestionText))
        self._place = kinds.index(ImagePlace)
        self.tokenizer = tokenizer
        self._tokenizer = reader_of_pieces(tokenizer)

    @classmethod
    def from_json(cls, value: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> Prompt:
        try:
            parts = [_part_from_json(part) for part in value]
        except (KeyError, TypeError, ValueError) as error:
            raise MvlmError(f"the prompt of the bundle is not in order ({error!r}): export again") from None
        return cls(parts, tokenizer)

    def to_json(self) -> list[dict[str, Any]]:
        return [_part_to_json(part) for part in self.parts]

    def question_ids(self, question: str) -> list[int]:
        """The ids of the text that holds the question, which the router's features look at."""
        return self.text_ids(self._question.before + question + self._question.after)

    def before(self, question: str) -> list[int]:
        """The ids that stand before the picture."""
        return self._part_ids(self.parts[: self._place], question)

    def after(self, question: str) -> list[int]:
        """The ids that stand after the picture."""
        return self._part_ids(self.parts[self._place + 1 :], question)

    @property
    def lead(self) -> list[int]:
        """The ids that every prompt begins with, whatever is asked about whatever picture."""
        ids: list[int] = []
        for part in self.parts:
            if not isinstance(part, FixedIds):
                break
            ids += part.ids
        return ids

    @property
    def picture_first(self) -> bool:
        """Whether the picture stands before the question, so that all questions about it share what was read of it."""
        return self._place < self.parts.index(self._question)

    def ids(self, question: str, num_visual_tokens: int, image_token_id: int) -> list[int]:
        """The whole prompt, with `num_visual_tokens` placeholders where the picture stands."""
        return [*self.before(question), *[image_token_id] * num_visual_tokens, *self.after(question)]

    def _part_ids(self, parts: Sequence[Part], question: str) -> list[int]:
        ids: list[int] = []
        for part in parts:
            ids += part.ids if isinstance(part, FixedIds) else self.question_ids(question)
        return ids

    def text_ids(self, text: str) -> list[int]:
        """The ids of a piece of plain text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, token_ids: Sequence[int]) -> str:
        """Generated ids as text, without special tokens and with all white space."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def spelled(self, token: int) -> str:
        """One token as it would stand within a text, the space before it included; half a character is U+FFFD."""
        text = str(self._tokenizer.decode([token], skip_special_tokens=False))
        piece = self._tokenizer.id_to_token(token) or ""
        return f" {text}" if piece.startswith(_SPACE) and not text.startswith(" ") else text

    def answer(self, token_ids: Sequence[int]) -> str:
        """Generated ids as the text that people read: without special tokens and the space around it."""
        return self.text(token_ids).strip()


def _part_to_json(part: Part) -> dict[str, Any]:
    if isinstance(part, FixedIds):
        return {"ids": list(part.ids)}
    if isinstance(part, ImagePlace):
        return {"image": True}
    return {"question": {"before": part.before, "after": part.after}}


def _part_from_json(value: dict[str, Any]) -> Part:
    if "ids" in value:
        return FixedIds(tuple(int(token) for token in value["ids"]))
    if "image" in value:
        return ImagePlace()
    return QuestionText(str(value["question"]["before"]), str(value["question"]["after"]))
