"""The drawn benchmark: pictures whose questions need different amounts of sight. No torch.

A picture is a sky and a ground with shapes, dots, a printed number and a printed letter on it. What a question needs
to be answered is known by construction, and for some kinds *the picture decides*: the star is large and alone on one
and tiny in a crowd on another, so a router that reads only the question cannot win it all. Sizes and clutter vary as
in the measured recipe (reference/feasibility.md, part 2, second data set).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .drawn import Colour, Drawn, Question, Sight, World, pick, some, tag, touch
from .question_templates import Asked, worded

SIZE_PX = 96
GRID_SIDE = 12
PATCH_PX = SIZE_PX // GRID_SIDE

TIMES: dict[str, Colour] = {"day": (150, 205, 245), "dusk": (235, 150, 110), "night": (25, 28, 66)}
GROUNDS: dict[str, Colour] = {
    "grass": (196, 222, 176), "sand": (232, 214, 172), "snow": (244, 246, 250), "stone": (186, 186, 190),
}  # fmt: skip
COLOURS: dict[str, Colour] = {
    "red": (214, 32, 38), "green": (28, 140, 50), "blue": (36, 72, 216), "yellow": (246, 210, 16),
    "orange": (244, 128, 16), "purple": (136, 44, 160), "pink": (246, 122, 182), "brown": (112, 66, 28),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES_PX = {"small": (8, 11), "medium": (13, 17), "large": (22, 28), "huge": (38, 46)}
DIGITS = "0123456789"
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
_FONTS_PX = ((14, 17), (21, 26), (32, 40))
SKY_PX = 24
DOT_PX = 4
_MARGIN_PX, _GAP_PX = 4, 2
_HIDDEN_SHARE = 0.6
_CLEARLY_PX = 3
INK: Colour = (16, 16, 20)
MOST_DOTS = 3

ThingKind = Literal["shape", "dots", "number", "letter", "code", "flag"]
_WRITTEN = ("number", "letter", "code")

KINDS: dict[str, Sight] = {
    "time_of_day": "one-token", "ground": "one-token", "framed": "one-token",
    "largest": "coarse", "count_large": "coarse", "where": "coarse", "relation": "coarse",
    "smallest": "fine", "dots": "fine",
    "colour_of": "picture", "shape_of": "picture", "number": "picture", "letter": "picture",
}  # fmt: skip

# What a patch may be said to show, in words: the groups of the patch loss. Zero in a tag means nothing of the group.
TAG_WORDS: dict[str, tuple[str, ...]] = {
    "thing": ("shape", "dots", "number", "letter"),
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES_PX),
    "character": tuple(DIGITS + LETTERS),
    "row": ("top", "bottom"),
    "column": ("left", "right"),
    "sky": tuple(TIMES),
    "ground": tuple(GROUNDS),
    "frame": ("frame",),
}


@dataclass(frozen=True)
class Thing:
    """Something drawn: its box, and what can be said of it."""

    box: tuple[int, int, int, int]
    kind: ThingKind
    shape: str = ""
    colour: str = ""
    size: str = ""
    text: str = ""

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def side_px(self) -> int:
        return self.box[2] - self.box[0]


@dataclass
class Scene:
    """One picture, its questions, and for each patch what it shows: tags[group] is (G, G) uint8, 0 for nothing."""

    time: str
    ground: str
    framed: bool
    things: list[Thing] = field(default_factory=list)
    image: Image.Image = field(default_factory=lambda: Image.new("RGB", (SIZE_PX, SIZE_PX)))
    tag_words: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: TAG_WORDS)
    tags: dict[str, NDArray[np.uint8]] = field(init=False)

    def __post_init__(self) -> None:
        self.tags = {group: np.zeros((GRID_SIDE, GRID_SIDE), np.uint8) for group in self.tag_words}

    def shapes(self) -> list[Thing]:
        return [thing for thing in self.things if thing.kind == "shape"]


def draw_scene(random: Generator) -> Scene:
    """Compose and draw one scene; all chance comes from `random`."""
    scene = Scene(pick(random, TIMES), pick(random, GROUNDS), bool(random.random() < 0.5))
    paint_background(scene, random)
    for thing in _compose(random):
        placed = place(scene, thing, random)
        if placed:
            scene.things.append(placed)
            paint(scene, placed)
    for _ in range(int(random.integers(0, MOST_DOTS + 1))):
        dot = place(scene, Thing((0, 0, DOT_PX, DOT_PX), "dots"), random, top=SKY_PX)  # black on night is no dot
        if dot:
            scene.things.append(dot)
            paint(scene, dot)
    return scene


def ask(scene: Scene, random: Generator, *, held_out: bool) -> list[Question]:
    """Every question the picture can answer; `held_out` also draws the wordings that training never saw."""
    asked = [*beside_shapes(scene), *_about_shapes(scene.shapes(), random)]
    return worded(asked, random, held_out=held_out)


def beside_shapes(scene: Scene) -> list[Asked]:
    """What can be asked of all but the shapes: of sky, ground and frame, of dots, and what is written."""
    return [
        ("time_of_day", scene.time, {}),
        ("ground", scene.ground, {}),
        ("framed", "yes" if scene.framed else "no", {}),
        ("dots", str(sum(thing.kind == "dots" for thing in scene.things)), {}),
        *((thing.kind, thing.text, {}) for thing in scene.things if thing.text),
    ]


def _about_shapes(shapes: list[Thing], random: Generator) -> list[Asked]:
    large = [thing for thing in shapes if thing.size in ("large", "huge")]
    asked: list[Asked] = [("count_large", str(len(large)), {})]
    by_side = sorted(shapes, key=lambda thing: thing.side_px)
    if by_side and by_side[-1].size == "huge":
        asked.append(("largest", by_side[-1].colour, {}))
    if len(by_side) > 1 and by_side[0].size == "small" and by_side[1].side_px - by_side[0].side_px >= _CLEARLY_PX:
        asked.append(("smallest", by_side[0].colour, {}))
    for thing in some(random, shapes, 2):
        asked.append(("colour_of", thing.colour, {"shape": thing.shape}))
    for thing in some(random, shapes, 2):
        asked.append(("shape_of", thing.shape, {"colour": thing.colour}))
    off_centre = [t for t in shapes if all(abs(x - SIZE_PX / 2) > PATCH_PX for x in t.centre)]
    for thing in some(random, off_centre, 2):
        asked.append(("where", "top" if thing.centre[1] < SIZE_PX / 2 else "bottom", {"shape": thing.shape}))
    sides = [(t, t.centre[0] < SIZE_PX / 2) for t in off_centre]
    pairs = [(a, b) for a, left in sides for b, other_left in sides if left != other_left]
    for a, b in some(random, pairs, 1):
        side = "left" if a.centre[0] < b.centre[0] else "right"
        asked.append(("relation", side, {"shape": a.shape, "other": b.shape}))
    return asked


def _compose(random: Generator) -> list[Thing]:
    """What is to be drawn, largest first, so that everything finds a place; each shape and colour stands once."""
    crowd = int(random.integers(1, 3)) if random.random() < 0.35 else int(random.integers(4, len(SHAPES) + 1))
    shapes, colours = random.permutation(SHAPES)[:crowd], random.permutation(list(COLOURS))[:crowd]
    sizes = ["huge"] if random.random() < 0.4 else []
    while len(sizes) < crowd:
        sizes.append(str(random.choice(["small", "medium", "large"], p=[0.45, 0.3, 0.25])))
    things = []
    for shape, colour, size in zip(shapes, colours, sizes, strict=True):
        side = int(random.integers(*SIZES_PX[size], endpoint=True))
        things.append(Thing((0, 0, side, side), "shape", str(shape), str(colour), size))
    if random.random() < 0.75:
        things.append(_text("number", "".join(random.choice(list(DIGITS), 2)), random))
    if random.random() < 0.75:
        things.append(_text("letter", str(random.choice(list(LETTERS))), random))
    return sorted(things, key=lambda thing: -thing.side_px)


def _text(kind: Literal["number", "letter"], text: str, random: Generator) -> Thing:
    font_px = int(random.integers(*_FONTS_PX[int(random.choice(3, p=[0.5, 0.25, 0.25]))], endpoint=True))
    left, top, right, bottom = font_of(font_px).getbbox(text)
    return Thing((0, 0, int(right - left), int(bottom - top)), kind, text=text, size=str(font_px))


_fonts: dict[int, ImageFont.FreeTypeFont] = {}


def font_of(size_px: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, in pixels."""
    if size_px not in _fonts:
        font = ImageFont.load_default(size_px)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise ImportError("this Pillow was built without FreeType, and text cannot be drawn")
        _fonts[size_px] = font
    return _fonts[size_px]


def place(scene: Scene, thing: Thing, random: Generator, top: int = _MARGIN_PX) -> Thing | None:
    """Find a free place under `top`, or give up: a thing that finds none is not drawn and not asked about."""
    width, height = thing.box[2:]
    for _ in range(40):
        x = int(random.integers(_MARGIN_PX, SIZE_PX - width - _MARGIN_PX))
        y = int(random.integers(top, SIZE_PX - height - _MARGIN_PX))
        box = (x, y, x + width, y + height)
        if not any(touch(box, other.box, _GAP_PX) for other in scene.things):
            return Thing(box, thing.kind, thing.shape, thing.colour, thing.size, thing.text)
    return None


def paint_background(scene: Scene, random: Generator) -> None:
    pixels = np.empty((SIZE_PX, SIZE_PX, 3), np.float32)
    pixels[:SKY_PX] = TIMES[scene.time]
    pixels[SKY_PX:] = GROUNDS[scene.ground]
    pixels += random.normal(0, 5, (SIZE_PX, SIZE_PX, 1))
    scene.image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    scene.tags["sky"][: SKY_PX // PATCH_PX] = scene.tag_words["sky"].index(scene.time) + 1
    scene.tags["ground"][SKY_PX // PATCH_PX :] = scene.tag_words["ground"].index(scene.ground) + 1
    if scene.framed:
        scene.tags["frame"][:] = 1
        scene.tags["frame"][1:-1, 1:-1] = 0
        ImageDraw.Draw(scene.image).rectangle([0, 0, SIZE_PX - 1, SIZE_PX - 1], outline=(60, 40, 28), width=3)


def paint(scene: Scene, thing: Thing) -> None:
    """Draw a thing, and tag the patches that show it."""
    if thing.kind in _WRITTEN:
        paint_text(scene, thing)
        return
    mask = Image.new("L", (SIZE_PX, SIZE_PX))
    draw_shape(ImageDraw.Draw(mask), thing.shape or "circle", thing.box)
    colour = COLOURS[thing.colour] if thing.colour else INK
    scene.image.paste(colour, mask=mask)
    words: dict[str, str] = {"thing": thing.kind}
    if thing.kind == "shape":
        row, column = (
            ("top", "bottom")[thing.centre[1] > SIZE_PX / 2],
            ("left", "right")[thing.centre[0] > SIZE_PX / 2],
        )
        words |= {"shape": thing.shape, "colour": thing.colour, "size": thing.size, "row": row, "column": column}
    tag_patches(scene, np.asarray(mask) > 0, words, share=0.3)


def paint_text(scene: Scene, thing: Thing) -> None:
    """Draw text with a light rim, so that it can be read on any sky and ground; each character is tagged."""
    font = font_of(int(thing.size))
    left, top = font.getbbox(thing.text)[:2]
    x, y = thing.box[0] - left, thing.box[1] - top
    ImageDraw.Draw(scene.image).text(
        (x, y), thing.text, font=font, fill=INK, stroke_width=1, stroke_fill=(252, 252, 252)
    )
    for character in thing.text:
        mask = Image.new("L", (SIZE_PX, SIZE_PX))
        ImageDraw.Draw(mask).text((x, y), character, font=font, fill=255)
        tag_patches(scene, np.asarray(mask) > 127, {"thing": thing.kind, "character": character}, share=0.1)
        x += font.getlength(character)


def tag_patches(scene: Scene, mask: NDArray[np.bool_], words: dict[str, str], *, share: float) -> None:
    """Tag the patches that `mask` (height, width) covers; sky and ground are no longer seen where it hides them."""
    covered = tag(scene.tags, mask, words, scene.tag_words, share)
    for behind in ("sky", "ground"):
        scene.tags[behind][covered > _HIDDEN_SHARE] = 0


def draw_shape(pen: ImageDraw.ImageDraw, shape: str, box: tuple[int, int, int, int]) -> None:
    """Fill one of `SHAPES` (and nothing else) into a box."""
    x0, y0, x1, y1 = box[0], box[1], box[2] - 1, box[3] - 1
    side = x1 - x0
    if shape == "circle":
        pen.ellipse([x0, y0, x1, y1], fill=255)
    elif shape == "square":
        pen.rectangle([x0, y0, x1, y1], fill=255)
    elif shape == "triangle":
        pen.polygon([((x0 + x1) / 2, y0), (x1, y1), (x0, y1)], fill=255)
    elif shape == "ring":
        pen.ellipse([x0, y0, x1, y1], outline=255, width=max(2, side // 5))
    elif shape == "cross":
        arm = side // 3
        pen.rectangle([x0 + arm, y0, x1 - arm, y1], fill=255)
        pen.rectangle([x0, y0 + arm, x1, y1 - arm], fill=255)
    else:
        angles = np.pi * (np.arange(10) / 5 - 0.5)
        radii = np.where(np.arange(10) % 2, 0.42, 1.0) * side / 2
        xs, ys = (x0 + x1) / 2 + radii * np.cos(angles), (y0 + y1) / 2 + radii * np.sin(angles)
        pen.polygon(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=255)


def _draw_world(random: Generator, held_out: bool) -> Drawn:
    scene = draw_scene(random)
    return Drawn(scene.image, ask(scene, random, held_out=held_out), scene.tags)


SMALL = World(SIZE_PX, GRID_SIDE, (16000, 900, 900), KINDS, TAG_WORDS, _draw_world)
