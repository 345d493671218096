"""Rendered chat text -> ids, on the device as in training: special tokens that a person spelled out stay text.

A chat template writes its special tokens into the same string as the words of the person. So that `<image>` in a
question is not taken for a picture, `spell` marks special tokens in the person's texts before the template sees them,
and what is marked is read as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from .errors import MvlmError
from .prompt import reader_of_pieces

# A noncharacter, which no text that is exchanged may hold; one that does comes back as it was all the same.
MARK = "\ufdd0"
_PAIR_OR_OTHER = re.compile(f"{MARK}{MARK}|[^{MARK}]")


@lru_cache
def special_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """What finds special tokens in a text, the longest first; nothing, where there are none."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def spell(value: Any, special: re.Pattern[str]) -> Any:
    """Chat messages, or a text, with the special tokens in their texts marked as text."""
    if isinstance(value, str):
        return special.sub(lambda found: found[0][0] + MARK + found[0][1:], value.replace(MARK, MARK * 2))
    if isinstance(value, list | tuple):
        return [spell(part, special) for part in value]
    if isinstance(value, dict):
        return {key: spell(held, special) if key in ("content", "text") else held for key, held in value.items()}
    return value


def marked(token: str) -> str:
    """How a special token looks in a text in which it is spelled out."""
    return token[0] + MARK + token[1:]


def stretches(text: str, special: re.Pattern[str]) -> Iterator[tuple[str, list[int], bool]]:
    """A text cut at its special tokens: the words of each stretch, its bounds, and whether it is a token.

    Of two marks the second stays, and one alone goes. The bounds say where in the stretch each character of the words
    stands, and at last how long the stretch is.
    """
    for piece in filter(None, re.split(f"({special.pattern})", text)):
        kept = [found.end() - 1 for found in _PAIR_OR_OTHER.finditer(piece)]
        yield "".join(piece[i] for i in kept), [*kept, len(piece)], special.fullmatch(piece) is not None


class ChatText:
    """A bundle's tokenizer, as the processor uses it on rendered chats."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Copies `tokenizer`."""
        self._whole = Tokenizer.from_str(tokenizer.to_str())
        self._whole.no_padding()
        self._whole.no_truncation()
        self._reader = reader_of_pieces(tokenizer)
        self._first = Tokenizer.from_str(self._whole.to_str())
        self._first.encode_special_tokens = True
        added = tokenizer.get_added_tokens_decoder().values()
        self._tokens = tuple(token.content for token in added if token.special)
        self.special = special_pattern(self._tokens)

    def ids(self, text: str) -> list[int]:
        """The ids of a rendered text. Raises `MvlmError` where a special token cannot be kept as text."""
        if MARK not in text:
            return self._encode(text)
        plain = text.replace(MARK, " ")
        if self._between(plain) != self._encode(plain):
            spelled = ", ".join(token for token in self._tokens if marked(token) in text)
            raise MvlmError(
                f"this tokenizer cannot keep {spelled} as text, since its pieces depend on what stands before them:"
                " take it out of the text",
                code="bad-messages",
            )
        return self._between(text)

    def _encode(self, text: str) -> list[int]:
        return self._whole.encode(text, add_special_tokens=False).ids

    def _between(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, (words, _, is_special) in enumerate(stretches(text, self.special)):
            reader = self._whole if is_special else self._first if number == 0 else self._reader
            ids += reader.encode(words, add_special_tokens=False).ids
        return ids


def cut_at(ids: Sequence[int], token: int) -> list[list[int]]:
    """A list cut at each place of a token, which falls out."""
    parts: list[list[int]] = [[]]
    for id in ids:
        if id == token:
            parts.append([])
        else:
            parts[-1].append(id)
    return parts
