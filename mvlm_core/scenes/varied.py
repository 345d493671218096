"""The drawn benchmark where sizes vary continuously, and some things are read by the finest scale alone. No torch.

Sides, fonts and stripes are drawn from one range each, small ones more often, so that no scale is the one at which a
kind of question becomes easy. A code of four digits and a flag of three stripes are answered in their order from left
to right: printed small, what a coarser cell shows is several of them at once.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .draw import (
    COLOURS,
    DIGITS,
    DOT_PX,
    GRID_SIDE,
    GROUNDS,
    INK,
    LETTERS,
    MOST_DOTS,
    PATCH_PX,
    SHAPES,
    SIZE_PX,
    SKY_PX,
    TAG_WORDS,
    TIMES,
    Scene,
    Thing,
    ThingKind,
    beside_shapes,
    font_of,
    paint,
    paint_background,
    place,
    tag_patches,
)  # fmt: skip
from .drawn import Drawn, Question, Sight, World, pick, some
from .question_templates import Asked, worded

# From the smallest to the largest, in pixels, of a shape's side, of fonts and of one stripe of a flag.
SIDE_PX, FONT_PX, CODE_FONT_PX, STRIPE_PX = (7, 46), (11, 40), (11, 24), (4, 18)
CODE_LENGTH, STRIPES = 4, 3
# How often a picture has one.
SHARES = {"number": 0.5, "letter": 0.6, "code": 0.6, "flag": 0.6}
_SMALLER = 1.5  # the power of a uniform draw: what is above 1 draws small things more often
_FEW_SHARE = 0.35
_CLEARLY, _LARGE_PX, _SMALL_PX = 1.3, 24, 14
_FLAG_HEIGHT_PX = (8, 20)

KINDS: dict[str, Sight] = {
    "time_of_day": "one-token", "ground": "one-token", "framed": "one-token",
    "largest": "coarse", "count_shapes": "coarse", "where": "coarse",
    "smallest": "fine", "dots": "fine",
    "colour_of": "picture", "shape_of": "picture", "number": "picture", "letter": "picture",
    "code": "picture", "flag": "picture",
}  # fmt: skip
VARIED_TAG_WORDS = TAG_WORDS | {"thing": (*TAG_WORDS["thing"], "code", "flag")}


def draw_varied(random: Generator) -> Scene:
    """Compose and draw one scene; all chance comes from `random`."""
    scene = Scene(pick(random, TIMES), pick(random, GROUNDS), bool(random.random() < 0.5), tag_words=VARIED_TAG_WORDS)
    paint_background(scene, random)
    dots = [Thing((0, 0, DOT_PX, DOT_PX), "dots")] * int(random.integers(0, MOST_DOTS + 1))
    for thing in [*_compose(random), *dots]:
        placed = place(scene, thing, random, *((SKY_PX,) if thing.kind == "dots" else ()))
        if placed:
            scene.things.append(placed)
            (_paint_flag if placed.kind == "flag" else paint)(scene, placed)
    return scene


def ask_varied(scene: Scene, random: Generator, *, held_out: bool) -> list[Question]:
    """Every question the picture can answer; `held_out` also draws the wordings that training never saw."""
    asked = [*beside_shapes(scene), *_about_shapes(scene.shapes(), random)]
    return worded(asked, random, held_out=held_out)


def _about_shapes(shapes: list[Thing], random: Generator) -> list[Asked]:
    asked: list[Asked] = [("count_shapes", str(len(shapes)), {})]
    by_side = sorted(shapes, key=lambda thing: thing.side_px)
    sides = [thing.side_px for thing in by_side]
    if len(sides) > 1 and sides[-1] >= max(_LARGE_PX, _CLEARLY * sides[-2]):
        asked.append(("largest", by_side[-1].colour, {}))
    if len(sides) > 1 and sides[0] <= min(_SMALL_PX, sides[1] / _CLEARLY):
        asked.append(("smallest", by_side[0].colour, {}))
    asked += [("colour_of", thing.colour, {"shape": thing.shape}) for thing in some(random, shapes, 2)]
    asked += [("shape_of", thing.shape, {"colour": thing.colour}) for thing in some(random, shapes, 2)]
    off_centre = [thing for thing in shapes if abs(thing.centre[1] - SIZE_PX / 2) > PATCH_PX]
    for thing in some(random, off_centre, 2):
        asked.append(("where", "top" if thing.centre[1] < SIZE_PX / 2 else "bottom", {"shape": thing.shape}))
    return asked


def _compose(random: Generator) -> list[Thing]:
    """What is to be drawn, largest first, so that everything finds a place; each shape and colour stands once."""
    crowd = int(random.integers(1, 3)) if random.random() < _FEW_SHARE else int(random.integers(3, len(SHAPES) + 1))
    shapes, colours = random.permutation(SHAPES)[:crowd], random.permutation(list(COLOURS))[:crowd]
    things = []
    for shape, colour in zip(shapes, colours, strict=True):
        side = _between(*SIDE_PX, random)
        things.append(Thing((0, 0, side, side), "shape", str(shape), str(colour), _size_word(side)))
    there = {kind: bool(random.random() < share) for kind, share in SHARES.items()}
    if there["number"]:
        things.append(_text("number", "".join(random.choice(list(DIGITS), 2)), FONT_PX, random))
    if there["letter"]:
        things.append(_text("letter", str(random.choice(list(LETTERS))), FONT_PX, random))
    if there["code"]:
        things.append(_text("code", "".join(random.choice(list(DIGITS), CODE_LENGTH)), CODE_FONT_PX, random))
    if there["flag"]:
        width, height = STRIPES * _between(*STRIPE_PX, random), int(random.integers(*_FLAG_HEIGHT_PX, endpoint=True))
        stripes = " ".join(str(colour) for colour in random.permutation(list(COLOURS))[:STRIPES])
        things.append(Thing((0, 0, width, height), "flag", text=stripes))
    return sorted(things, key=lambda thing: -thing.side_px)


def _between(least: int, most: int, random: Generator) -> int:
    """A number of pixels, even on a logarithmic scale but for `_SMALLER`."""
    return round(least * (most / least) ** float(random.random() ** _SMALLER))


def _size_word(side_px: int) -> str:
    """What the patch loss calls a shape of that side."""
    return TAG_WORDS["size"][int(np.searchsorted((12, 20, 33), side_px, side="right"))]


def _text(kind: ThingKind, text: str, fonts_px: tuple[int, int], random: Generator) -> Thing:
    font_px = _between(*fonts_px, random)
    left, top, right, bottom = font_of(font_px).getbbox(text)
    return Thing((0, 0, int(right - left), int(bottom - top)), kind, text=text, size=str(font_px))


def _paint_flag(scene: Scene, thing: Thing) -> None:
    """Three stripes and a line around them; each is tagged with its colour."""
    left, top, right, bottom = thing.box
    width = thing.side_px // STRIPES
    pen = ImageDraw.Draw(scene.image)
    for i, colour in enumerate(thing.text.split()):
        box = (left + i * width, top, left + (i + 1) * width - 1, bottom - 1)
        pen.rectangle(box, fill=COLOURS[colour])
        tag_patches(scene, _mask(box), {"thing": "flag", "colour": colour}, share=0.3)
    pen.rectangle((left - 1, top - 1, right, bottom), outline=INK)


def _mask(box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Where a box lies, its last row and column too: (SIZE_PX, SIZE_PX)."""
    mask = Image.new("L", (SIZE_PX, SIZE_PX))
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return np.asarray(mask) > 0


def _draw_world(random: Generator, held_out: bool) -> Drawn:
    scene = draw_varied(random)
    return Drawn(scene.image, ask_varied(scene, random, held_out=held_out), scene.tags)


VARIED = World(SIZE_PX, GRID_SIDE, (16000, 900, 900), KINDS, VARIED_TAG_WORDS, _draw_world)
