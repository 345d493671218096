"""What every drawn world is to those who write its rows: pictures with their questions, and what their patches show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
T = TypeVar("T")
WorldName = Literal["small", "varied", "large", "clips"]
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


def pick(random: Generator, names: Iterable[str]) -> str:
    """One of some names, each as likely as the others."""
    known = list(names)
    return known[int(random.integers(len(known)))]


def some(random: Generator, items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, in any order."""
    return [items[i] for i in random.permutation(len(items))[:most]]


def touch(a: Box, b: Box, gap_px: int) -> bool:
    """Whether two boxes (left, top, right, bottom) lie on each other, or nearer than a gap."""
    return a[0] < b[2] + gap_px and b[0] < a[2] + gap_px and a[1] < b[3] + gap_px and b[1] < a[3] + gap_px


def tag(
    tags: dict[str, NDArray[np.uint8]], mask: NDArray[np.bool_], words: Mapping[str, str],
    tag_words: Mapping[str, tuple[str, ...]], share: float,
) -> NDArray[np.float64]:  # fmt: skip
    """Tag the patches of which `mask` (height, width) covers a share, and always the one that it covers most.

    Returns how much of each patch it covers, (G, G).
    """
    (side, _), (height, width) = next(iter(tags.values())).shape, mask.shape
    covered: NDArray[np.float64] = mask.reshape(side, height // side, side, width // side).mean(axis=(1, 3))
    for group, word in words.items():
        tags[group][covered >= min(share, covered.max())] = tag_words[group].index(word) + 1
    return covered
