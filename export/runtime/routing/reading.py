"""What a reader of pictures reads, in numpy: one definition, used when rows are labelled and again on the device.

A reader is a router that looks at the patches themselves and at the words of the question, where the others look at
features of both. Letters: P patches of a view on a grid of side G, C cells, D width of the language model, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.runtime.errors import MvlmError

Array = NDArray[np.float32]
# Patches are read in a grid of at most this side, the finest that divides their own.
FINEST_SIDE = 12
# Longer questions are read up to here.
MOST_TOKENS = 32


@dataclass(frozen=True)
class Read:
    """A question about a picture as a reader has it: what its graph made of the picture (cells, channels), and the rows
    of the embedding table for the question's tokens (T, D)."""

    picture: Array
    question: Array


def read_side(side: int) -> int:
    """The side of the grid that a reader sees of a view of side G."""
    return max(s for s in range(1, min(side, FINEST_SIDE) + 1) if side % s == 0)


def read_patches(words: Array) -> Array:
    """Patches as the language model would read them, averaged to the grid that a reader sees: (P, D) -> (C, D)."""
    side = round(len(words) ** 0.5)
    if side * side != len(words):
        raise MvlmError(f"{len(words)} patches do not fill a square grid", code="bad-features")
    cells = read_side(side)
    if cells == side:
        return words
    step = side // cells
    return words.reshape(cells, step, cells, step, -1).mean(axis=(1, 3), dtype=np.float32).reshape(cells * cells, -1)


def read_question(token_rows: Array) -> Array:
    """The rows of the embedding table that are read of a question: (T, D) -> (at most `MOST_TOKENS`, D)."""
    return token_rows[:MOST_TOKENS]
