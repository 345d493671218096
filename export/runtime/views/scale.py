"""The grammar of scales: how finely a picture is shown, in one word that people, files and the device read alike.

`36` is the overview at 36 tokens, `16@4` the overview and up to 4 tiles at 16 tokens each, `16@native` the tiles that
the model's own processor would cut at 16 tokens each, and `native` those at the model's own number of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from export.runtime.errors import MvlmError

NATIVE = "native"
# `36`, or `16@4` and the like.
ScaleWord = int | str
_WORD = re.compile(rf"({NATIVE})|([1-9]\d{{0,8}})(?:@(?:({NATIVE})|([1-9]\d{{0,8}})))?")


@dataclass(frozen=True)
class Scale:
    """How a picture is shown.

    Attributes:
        tokens: of each view; None for as many as the model gives a view by itself.
        tiles: at most, beside the overview; 0 for the overview alone, None for those that the model's own processor
            would cut.
    """

    tokens: int | None
    tiles: int | None = 0

    @classmethod
    def parse(cls, word: str | int | Scale) -> Scale:
        """Read `m`, `m@n`, `m@native` or `native`. Raises `MvlmError` for anything else."""
        if isinstance(word, Scale):
            return word
        found = _WORD.fullmatch(str(word).strip()) if isinstance(word, str | int) else None
        if found is None:
            raise MvlmError(
                f"{word!r} is not a scale: write tokens a view (36), tokens and the most tiles (16@4, 16@native), or"
                f" {NATIVE}",
                code="bad-scale",
            )
        whole, tokens, tiled, tiles = found.groups()
        if whole:
            return cls(None, None)
        return cls(int(tokens), None if tiled else int(tiles or 0))

    def __str__(self) -> str:
        if self.tokens is None:
            return NATIVE
        return str(self.tokens) if self.tiles == 0 else f"{self.tokens}@{NATIVE if self.tiles is None else self.tiles}"

    @property
    def order(self) -> tuple[float, float]:
        """What scales are sorted by, from coarse to fine: the tiles, then the tokens; what is native comes last."""
        most = float("inf")
        return (most if self.tiles is None else self.tiles, most if self.tokens is None else self.tokens)

    @property
    def word(self) -> ScaleWord:
        """As configurations and files hold it: a number for the overview alone, and else the text."""
        return self.tokens if self.tiles == 0 and self.tokens is not None else str(self)


def is_word(text: str) -> bool:
    """Whether a text spells a scale."""
    return _WORD.fullmatch(text.strip()) is not None


def tokens_said(word: ScaleWord) -> str:
    """A scale in a person's words."""
    if isinstance(word, str):
        return word
    return f"{word} token" if word == 1 else f"{word} tokens"


def coarse_to_fine(words: Iterable[ScaleWord]) -> list[ScaleWord]:
    """Words of scales in ascending order."""
    return sorted(words, key=lambda word: Scale.parse(word).order)


def parse_words(text: str) -> tuple[Scale, ...]:
    """Read scales between commas, ranges of tokens (`1-16`) among them, from coarse to fine.

    Raises `MvlmError` for anything else, repetitions included.
    """
    scales: list[Scale] = []
    for part in text.split(","):
        first, dash, last = (end.strip() for end in part.partition("-"))
        if dash and first.isdecimal() and last.isdecimal():
            scales += [Scale.parse(tokens) for tokens in range(int(first), int(last) + 1)]
        else:
            scales.append(Scale.parse(part))
    if not scales or len(set(scales)) != len(scales):
        raise MvlmError(f"{text!r} is not a list of scales: each must stand once", code="bad-scale")
    return tuple(sorted(scales, key=lambda scale: scale.order))
