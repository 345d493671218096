"""Drawn clips whose questions need one frame, a few, or all of them. No torch.

A shape crosses a sheet of paper, two flags are raised one after the other, and a lamp flashes a few times, each time in
one frame alone. What the shape is and which colour it has is seen in any frame, where it goes in two, which flag comes
first in a few, and how often the lamp flashes in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .draw import COLOURS, SHAPES, draw_shape
from .drawn import Colour, Drawn, Question, Sight, World, tag
from .large import PAPERS
from .question_templates import worded

SIZE_PX, GRID_SIDE, FRAMES = 64, 8, 8
_SHAPE_PX, _FLAG_PX, _LAMP_PX = 18, 12, 8
_MOST_FLASHES, _TAGGED_SHARE = 3, 0.2
_LAMP_ON, _LAMP_OFF = (255, 244, 90), (90, 90, 96)
WAYS: dict[str, tuple[int, int]] = {"left": (-5, 0), "right": (5, 0), "up": (0, -5), "down": (0, 5)}

KINDS: dict[str, Sight] = {
    "paper": "one-token", "moving_colour": "coarse", "moving_shape": "coarse", "moves": "picture",
    "first_flag": "picture", "flashes": "fine",
}  # fmt: skip
TAG_WORDS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES, "colour": tuple(COLOURS), "paper": tuple(PAPERS), "thing": ("shape", "flag"),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One clip: what crosses it and which way, the two flags in their order with the frames that they are raised in,
    and the frames that the lamp flashes in."""

    paper: str
    shape: str
    colour: str
    way: str
    flags: tuple[str, str]
    raised: tuple[int, int]
    flashes: frozenset[int]

    def place(self, frame: int) -> tuple[int, int]:
        """The upper left corner of the shape in a frame; in the middle one it is in the middle."""
        across, down = WAYS[self.way]
        middle, steps = (SIZE_PX - _SHAPE_PX) // 2, frame - FRAMES // 2
        return middle + across * steps, middle + down * steps


def compose(random: Generator) -> Scene:
    """What is to be drawn; all chance comes from `random`."""
    colours = [str(colour) for colour in random.permutation(list(COLOURS))]
    first = int(random.integers(0, FRAMES - 2))
    second = int(random.integers(first + 1, FRAMES))
    flashes = random.permutation(FRAMES)[: int(random.integers(0, _MOST_FLASHES + 1))]
    return Scene(
        str(random.choice(list(PAPERS))), str(random.choice(SHAPES)), colours[0], str(random.choice(list(WAYS))),
        (colours[1], colours[2]), (first, second), frozenset(int(frame) for frame in flashes),
    )  # fmt: skip


def paint(scene: Scene, frame: int, random: Generator) -> Image.Image:
    """One frame of a clip."""
    pixels = np.array(PAPERS[scene.paper], np.float32) + random.normal(0, 4, (SIZE_PX, SIZE_PX, 1))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    for colour, mask in _shown(scene, frame):
        image.paste(colour, mask=mask)
    return image


def tags_of(scene: Scene) -> dict[str, NDArray[np.uint8]]:
    """What the patches of the middle frame show, which is a clip's overview."""
    tags = {group: np.zeros((GRID_SIDE, GRID_SIDE), np.uint8) for group in TAG_WORDS}
    tags["paper"][:] = 1 + list(PAPERS).index(scene.paper)
    words = [{"shape": scene.shape, "colour": scene.colour, "thing": "shape"}]
    words += [{"colour": flag, "thing": "flag"} for flag in _raised(scene, FRAMES // 2)]
    for of, (_, mask) in zip(words, _shown(scene, FRAMES // 2), strict=False):  # the lamp, which comes last, has none
        tag(tags, np.asarray(mask) > 0, of, TAG_WORDS, _TAGGED_SHARE)
    return tags


def questions_of(scene: Scene, random: Generator, *, held_out: bool) -> list[Question]:
    """Every question that a clip answers."""
    asked = {
        "paper": scene.paper, "moving_colour": scene.colour, "moving_shape": scene.shape, "moves": scene.way,
        "first_flag": scene.flags[0], "flashes": str(len(scene.flashes)),
    }  # fmt: skip
    return worded(((kind, answer, {}) for kind, answer in asked.items()), random, held_out=held_out)


def draw_clip(random: Generator, held_out: bool) -> Drawn:
    """A clip with its questions, and the tags of its middle frame."""
    scene = compose(random)
    frames = tuple(paint(scene, frame, random) for frame in range(FRAMES))
    return Drawn(frames[FRAMES // 2], questions_of(scene, random, held_out=held_out), tags_of(scene), frames)


CLIPS = World(SIZE_PX, GRID_SIDE, (4000, 500, 500), KINDS, TAG_WORDS, draw_clip)


def _raised(scene: Scene, frame: int) -> list[str]:
    """The flags that are up in a frame."""
    return [flag for flag, since in zip(scene.flags, scene.raised, strict=True) if frame >= since]


def _shown(scene: Scene, frame: int) -> list[tuple[Colour, Image.Image]]:
    """What a frame shows, each with where: the shape, the flags that are up, and the lamp."""
    x, y = scene.place(frame)
    shown = [(COLOURS[scene.colour], _mask(scene.shape, (x, y, x + _SHAPE_PX, y + _SHAPE_PX)))]
    for n, flag in enumerate(scene.flags):
        if flag in _raised(scene, frame):
            left = 2 + n * (SIZE_PX - _FLAG_PX - 4)
            shown.append((COLOURS[flag], _mask("square", (left, 50, left + _FLAG_PX, 50 + _FLAG_PX))))
    on = frame in scene.flashes
    return [*shown, (_LAMP_ON if on else _LAMP_OFF, _mask("circle", (28, 2, 28 + _LAMP_PX, 2 + _LAMP_PX)))]


def _mask(shape: str, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (SIZE_PX, SIZE_PX))
    draw_shape(ImageDraw.Draw(mask), shape, box)
    return mask
