"""Rendered chat text -> ids: special tokens that a person spelled out stay text, and an answer mask follows.

A chat template writes its special tokens into the same string as the words of the person. So that `<image>` in a
question is not taken for a picture, `spell` marks special tokens in the person's texts before the template sees them,
and `encode_text` reads the marked ones as text: as `export.runtime.chat_text` does on the device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from export.runtime.chat_text import MARK, marked, special_pattern, stretches
from export.runtime.chat_text import spell as spell_special
from export.runtime.errors import MvlmError
from export.runtime.prompt import reader_of_pieces
from export.runtime.views.scale import ScaleWord

Fits = Callable[[int], ScaleWord | None]


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids, one placeholder a picture, and for each id whether training supervises it."""

    ids: list[int]
    supervised: list[bool]

    def length(self, scale: int, image_token_id: int) -> int:
        """The tokens of the conversation when every picture is `scale` tokens."""
        return len(self.ids) + (scale - 1) * self.ids.count(image_token_id)

    def length_with(self, visual: int, image_token_id: int) -> int:
        """The tokens of the conversation when its pictures are `visual` together, marks and all."""
        return len(self.ids) + visual - self.ids.count(image_token_id)


def truncate(
    encoded: Encoded, max_tokens: int, scale: ScaleWord, image_token_id: int, visual: int | None = None,
    fits: Fits | None = None,
) -> Encoded:  # fmt: skip
    """Leave out text at the end until at most `max_tokens` are left at `scale`, where pictures are `visual` tokens.

    `visual` may be left out where every picture is `scale` tokens; `fits` says at which scale pictures take at most so
    many. Give the finest scale, so that all scales are shown the same words. Raises `MvlmError` where a picture would
    have to go, or everything that is supervised.
    """
    if visual is None:
        visual = int(scale) * encoded.ids.count(image_token_id)
    length = encoded.length_with(visual, image_token_id)
    over = length - max_tokens
    if over <= 0:
        return encoded
    keep = max(len(encoded.ids) - over, 0)
    if image_token_id in encoded.ids[keep:]:
        raise MvlmError(
            f"{length} tokens at scale {scale} do not fit into {max_tokens} without"
            " leaving out a picture: raise max_tokens, lower the scale, or take pictures out"
            f"{_hint(fits, max_tokens - length + visual)}"
        )
    if not any(encoded.supervised[:keep]):
        raise MvlmError(
            f"{length} tokens at scale {scale} do not fit into {max_tokens} without"
            " leaving out every answer: raise max_tokens, lower the scale, or shorten the question"
        )
    return Encoded(encoded.ids[:keep], encoded.supervised[:keep])


def require_positions(
    length: int, positions: int | None, scale: ScaleWord, visual: int = 0, fits: Fits | None = None
) -> None:
    """Raise `MvlmError` for a conversation of `length` tokens that is longer than the language model was made for.

    `visual` of them are pictures, and `fits` names a scale that does fit.
    """
    if positions is not None and length > positions:
        raise MvlmError(
            f"{length} tokens at scale {scale} are more than the {positions} positions of the language model: set"
            f" max_tokens, lower the scale, or shorten the row{_hint(fits, positions - length + visual)}"
        )


def _hint(fits: Fits | None, room: int) -> str:
    """At which scale pictures fit into so many tokens."""
    word = fits(room) if fits else None
    return "" if word is None else f"; at {word} it fits"


def spell(value: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Chat messages, or a text, with the special tokens in their texts marked as text."""
    return spell_special(value, _special(tokenizer))


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a rendered text, and from where to where in it each stands. What `spell` marked is read as text.

    Raises `MvlmError` for a marked text when the tokenizer's pieces depend on what stands before them, since the text
    between special tokens cannot be encoded by itself then.
    """
    if MARK not in text:
        return _encode(text, tokenizer)
    plain = text.replace(MARK, " ")
    if _between_special(plain, tokenizer)[0] != _encode(plain, tokenizer)[0]:
        spelled = ", ".join(token for token in _special_tokens(tokenizer) if marked(token) in text)
        raise MvlmError(
            f"this tokenizer cannot keep {spelled} as text, since its pieces depend on what stands before them: take"
            " it out of the text"
        )
    return _between_special(text, tokenizer)


def supervised(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Which ids have a character between the generation marks."""
    starts, ends = np.asarray(offsets, int).reshape(-1, 2).T
    ends = np.maximum(ends, starts + 1)
    inside = np.zeros(max([*ends.tolist(), *(to for _, to in spans), 0]) + 1, int)  # of each character and those before
    for since, to in spans:
        inside[since + 1 : to + 1] = 1
    inside = inside.cumsum()
    return (inside[ends] > inside[starts]).tolist()


def answer_spans(
    whole: str, shown: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, int]]:
    """Where in a rendered conversation the answers stand, for a chat template that does not mark them.

    `shown` holds for each answer the conversation as it is asked for, and as it stands with the answer; what comes
    between, up to the last special token, is supervised. Raises `MvlmError` where the one does not begin the other.
    """
    spans = []
    for asked, answered in shown:
        if not (answered.startswith(asked) and whole.startswith(answered)):
            raise MvlmError(
                "the chat template marks no answers, and shows a conversation otherwise once it goes on, so they are"
                " not found: put {% generation %} and {% endgeneration %} around them in chat_template.jinja"
            )
        ends = [found.end() for found in _special(tokenizer).finditer(answered, len(asked))]
        spans.append((len(asked), ends[-1] if ends else len(answered)))
    return spans


def _between_special(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of the text between special tokens, one stretch after another, and those of the special tokens."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    place = 0
    for words, bounds, is_special in stretches(text, _special(tokenizer)):
        if is_special or place == 0:
            found, at = _encode(words, tokenizer, as_text=not is_special)
        else:
            read = _reader(tokenizer, len(tokenizer)).encode(words, add_special_tokens=False)
            found, at = read.ids, read.offsets
        ids += found
        offsets += [  # a token need not have a character of its own
            (place + bounds[start], place + (bounds[end - 1] + 1 if end > start else bounds[start]))
            for start, end in at
        ]
        place += bounds[-1]
    return ids, offsets


def _encode(
    text: str, tokenizer: PreTrainedTokenizerBase, *, as_text: bool = False
) -> tuple[list[int], list[tuple[int, int]]]:
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=as_text, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [tuple(offset) for offset in encoded["offset_mapping"]]


@lru_cache(maxsize=4)
def _reader(tokenizer: PreTrainedTokenizerBase, tokens: int) -> Tokenizer:
    """As on the device. `tokens` is how many the tokenizer has: one that grew is another."""
    backend: Any = tokenizer
    return reader_of_pieces(backend.backend_tokenizer)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def _special(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    return special_pattern(_special_tokens(tokenizer))
