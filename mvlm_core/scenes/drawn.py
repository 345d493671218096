"""What every drawn world is to those who write its rows: pictures with their questions, and what their patches show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

# How much sight a kind of question needs; `picture` means that one picture makes it easy and another makes it hard.
Sight = Literal["one-token", "coarse", "fine", "picture"]


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Drawn:
    """A picture, its questions, and for each patch of its overview what it shows: (G, G) uint8, 0 for nothing.

    Of a clip there are `frames`, and the picture is the middle one, its overview.
    """

    image: Image.Image
    questions: list[Question]
    tags: dict[str, NDArray[np.uint8]]
    frames: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class World:
    """A way of drawing.

    Attributes:
        size_px, grid_side: of a view, and of its patches.
        pictures: of the splits train, val and test, where nobody says how many.
        kinds: of questions, and how much sight each needs.
        tag_words: what a patch may be said to show; 0 in a tag means nothing of the group.
        draw: a picture, all of whose chance comes from the generator; with `held_out` wordings that training never saw.
    """

    size_px: int
    grid_side: int
    pictures: tuple[int, int, int]
    kinds: Mapping[str, Sight]
    tag_words: Mapping[str, tuple[str, ...]]
    draw: Callable[[Generator, bool], Drawn]
