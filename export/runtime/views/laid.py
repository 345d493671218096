"""A picture at a scale as it stands in a prompt: the ids of its marks, and the places of its visual tokens.

Letters: L positions of the picture, T placeholders among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from export.runtime.errors import MvlmError

from .clip_words import Timing, ids_of_shown
from .cutting import OVERVIEW, Size
from .scale import Scale, ScaleWord
from .shown import NEWLINE, Shown, of_clip
from .spec import ViewSpec, tokens_of_view

_KEPT = 512
_NO_TIMES = Timing()


@dataclass(frozen=True)
class Laid:
    """A picture at a scale. `ids` (L) are those of its marks, with the placeholder's where a visual token goes."""

    shown: Shown
    ids: tuple[int, ...]
    image_token_id: int

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Where the visual tokens go, ascending: (T,)."""
        return np.flatnonzero(np.asarray(self.ids) == self.image_token_id)

    @cached_property
    def num_visual_tokens(self) -> int:
        """The tokens that show something of the picture: neither marks nor newlines."""
        stitch = self.shown.stitch
        return self.shown.num_placeholders if stitch is None else int((stitch.sources != NEWLINE).any(axis=1).sum())

    @property
    def views(self) -> int:
        return len(self.shown.views)

    @property
    def tiles(self) -> Size:
        """Rows and columns of its tiles; (0, 0) where it has none."""
        canvas = next((view.canvas for view in self.shown.views if view.canvas), None)
        return (canvas.rows, canvas.cols) if canvas else (0, 0)


class Layout:
    """How pictures and clips stand in the prompts of one model; without a `spec` a picture is its overview alone."""

    def __init__(self, spec: ViewSpec | None, ids_of: Callable[[str], Sequence[int]], image_token_id: int) -> None:
        """`ids_of` encodes a text as the chat template's is encoded."""
        self.spec, self._ids_of, self._image_token_id = spec, ids_of, image_token_id
        self.at = lru_cache(_KEPT)(self._at)
        self.clip = lru_cache(_KEPT)(self._clip)

    def tokens(self, word: ScaleWord) -> int:
        """The tokens of one view at a scale."""
        return tokens_of_view(word, self.spec)

    def least(self, word: ScaleWord) -> int:
        """The positions of a picture that has no tiles."""
        return len(self.at((1, 1), self.tokens(word)))

    def _at(self, size: Size, word: ScaleWord) -> Laid:
        """A picture of (height, width) pixels at a scale."""
        if self.spec is None:
            if Scale.parse(word).tiles != 0:
                raise MvlmError(
                    f"this bundle shows a picture as a whole, and {word} is of clips: name the tokens alone, as in"
                    f" {self.tokens(word)}",
                    code="scale-not-allowed",
                )
            return self._whole(self.tokens(word))
        return self._laid(Shown.of(size, Scale.parse(word), self.spec))

    def _clip(self, count: int, word: ScaleWord, timing: Timing = _NO_TIMES) -> Laid:
        """A clip of so many frames at a scale, between the words that the model was trained to read."""
        one = self._at((1, 1), self.tokens(word)).shown
        words = self.spec.clip_words if self.spec else "none"
        return self._laid(of_clip(count, Scale.parse(word), one, words, timing))

    def _whole(self, tokens: int) -> Laid:
        shown = Shown([OVERVIEW], tokens, "", None, tokens)
        return Laid(shown, (self._image_token_id,) * tokens, self._image_token_id)

    def _laid(self, shown: Shown) -> Laid:
        """Raises `MvlmError` for marks that the tokenizer does not read as the model's."""
        if self.spec is None:
            ids: Sequence[int] = (self._image_token_id,) * shown.num_placeholders
        else:
            ids = ids_of_shown(shown.text, self._ids_of)
        laid = Laid(shown, tuple(ids), self._image_token_id)
        if len(laid.places) != shown.num_placeholders:
            raise MvlmError(
                f"the tokenizer makes {len(laid.places)} placeholders of {shown.num_placeholders}: it is another"
                " model's; export again",
                code="bad-bundle",
            )
        return laid
