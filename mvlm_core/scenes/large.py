"""Drawn pictures of several sizes and shapes, whose questions need the overview, some tiles, or all of them. No torch.

A sheet of paper with coloured letters on it: a sign with a few, a menu of lines, a map with letters all over, a form
with boxes. Sides are whole views of `SIZE_PX`, so that a picture holds from one to sixteen tiles. A letter is as large
as chance will have it: the same question is answered by the overview of one picture, by four tiles of another and by
nothing less than all tiles of a third, where the overview shows the letter three or four pixels high. Dots vanish from
the overview of a large sheet and have to be counted over all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .draw import COLOURS, font_of
from .drawn import Box, Colour, Drawn, Question, Sight, World, pick, some, tag, touch
from .question_templates import Asked, worded

SIZE_PX, GRID_SIDE = 64, 8

# (height, width) of sheets, and how often each is drawn.
SHEETS: dict[tuple[int, int], float] = {
    (64, 64): 0.3, (64, 128): 0.06, (128, 64): 0.06, (128, 128): 0.2, (256, 256): 0.18,
    (128, 512): 0.1, (512, 128): 0.1,
}  # fmt: skip
PAPERS: dict[str, Colour] = {
    "white": (250, 250, 248), "grey": (206, 208, 212), "cream": (246, 232, 200), "mint": (204, 236, 218),
}  # fmt: skip
LETTERS = "ACEHKLMPRSTX"
LAYOUTS = ("sign", "menu", "map", "form")
# Fonts of a letter, in pixels: what is tiny on a large sheet is large on a small one.
FONTS_PX = {"tiny": (14, 18), "middle": (26, 34), "large": (54, 70)}
_LEGIBLE_PX = 7
_DOT_PX = 5
_MOST_DOTS = 3
_MARGIN_PX, _GAP_PX, _TAGGED_SHARE = 3, 4, 0.1
_FRAME: Colour = (60, 40, 28)
_RULE: Colour = (150, 150, 156)
_INK: Colour = (16, 16, 20)

KINDS: dict[str, Sight] = {
    "paper": "one-token", "framed": "one-token", "where_letter": "coarse", "count_letters": "coarse",
    "letter_of": "picture", "ink_of": "picture", "dots": "picture",
}  # fmt: skip
TAG_WORDS: dict[str, tuple[str, ...]] = {
    "thing": ("letter", "dots"), "colour": tuple(COLOURS), "character": tuple(LETTERS), "row": ("top", "bottom"),
    "paper": tuple(PAPERS), "frame": ("frame",),
}  # fmt: skip


@dataclass(frozen=True)
class Letter:
    """A letter on a sheet: where it stands, in which colour and font."""

    text: str
    colour: str
    font_px: int
    box: Box


@dataclass
class Sheet:
    """One picture: what it is made of, and all that is on it."""

    size: tuple[int, int]
    paper: str
    layout: str
    framed: bool
    letters: list[Letter] = field(default_factory=list)
    dots: list[Box] = field(default_factory=list)

    def height_in_overview(self, letter: Letter) -> float:
        """Of a letter, in pixels."""
        return (letter.box[3] - letter.box[1]) * SIZE_PX / self.size[0]


def compose(random: Generator) -> Sheet:
    """What is to be drawn; all chance comes from `random`."""
    sizes, chances = list(SHEETS), list(SHEETS.values())
    size = sizes[int(random.choice(len(sizes), p=chances))]
    sheet = Sheet(size, pick(random, PAPERS), str(random.choice(LAYOUTS)), bool(random.random() < 0.5))
    views = size[0] * size[1] // SIZE_PX**2
    count = int(random.integers(1, 3)) if views == 1 else int(random.integers(2, 5 if views <= 4 else 7))
    texts = [str(text) for text in random.permutation(list(LETTERS))[:count]]
    colours = [str(colour) for colour in random.permutation(list(COLOURS))[:count]]
    fonts = sorted((_font_px(size, random) for _ in texts), reverse=True)  # the largest first, so that all find a place
    for text, colour, font_px in zip(texts, colours, fonts, strict=True):
        if box := _place(sheet, *_extent(text, font_px), random):
            sheet.letters.append(Letter(text, colour, font_px, box))
    for _ in range(int(random.integers(0, _MOST_DOTS + 1))):
        if box := _place(sheet, _DOT_PX, _DOT_PX, random):
            sheet.dots.append(box)
    return sheet


def paint(sheet: Sheet, random: Generator) -> Image.Image:
    """The picture of a sheet."""
    height, width = sheet.size
    pixels = np.array(PAPERS[sheet.paper], np.float32) + random.normal(0, 4, (height, width, 1))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    if sheet.framed:  # as thick as it takes to be seen in the overview
        pen.rectangle([0, 0, width - 1, height - 1], outline=_FRAME, width=3 * min(sheet.size) // SIZE_PX)
    for letter in sheet.letters:
        _furnish(pen, sheet, letter)
    for letter in sheet.letters:
        _write(pen, letter, COLOURS[letter.colour])
    for box in sheet.dots:
        pen.ellipse([box[0], box[1], box[2] - 1, box[3] - 1], fill=_INK)
    return image


def questions_of(sheet: Sheet, random: Generator, *, held_out: bool) -> list[Question]:
    """Every question that a sheet answers."""
    asked: list[Asked] = [
        ("paper", sheet.paper, {}),
        ("framed", "yes" if sheet.framed else "no", {}),
        ("count_letters", str(len(sheet.letters)), {}),
        ("dots", str(len(sheet.dots)), {}),
    ]
    middle = sheet.size[0] / 2
    for letter in some(random, sheet.letters, 2):
        asked.append(("letter_of", letter.text, {"colour": letter.colour}))
    for letter in some(random, sheet.letters, 2):
        asked.append(("ink_of", letter.colour, {"letter": letter.text}))
    for letter in some(random, [one for one in sheet.letters if abs(_row(one) - middle) > middle / 4], 1):
        asked.append(("where_letter", "top" if _row(letter) < middle else "bottom", {"colour": letter.colour}))
    return worded(asked, random, held_out=held_out)


def tags_of(sheet: Sheet) -> dict[str, NDArray[np.uint8]]:
    """What the patches of the overview show; of a letter too small to be read there, its colour alone."""
    tags = {group: np.zeros((GRID_SIDE, GRID_SIDE), np.uint8) for group in TAG_WORDS}
    tags["paper"][:] = 1 + list(PAPERS).index(sheet.paper)
    if sheet.framed:
        tags["frame"][:] = 1
        tags["frame"][1:-1, 1:-1] = 0
    for letter in sheet.letters:
        mask = Image.new("L", sheet.size[::-1])
        _write(ImageDraw.Draw(mask), letter, 255)
        words = {"colour": letter.colour}
        if sheet.height_in_overview(letter) >= _LEGIBLE_PX:
            row = "top" if _row(letter) < sheet.size[0] / 2 else "bottom"
            words |= {"thing": "letter", "character": letter.text, "row": row}
        tag(tags, np.asarray(mask) > 127, words, TAG_WORDS, _TAGGED_SHARE)
    for box in sheet.dots if sheet.size == (SIZE_PX, SIZE_PX) else ():
        mask = Image.new("L", sheet.size[::-1])
        ImageDraw.Draw(mask).ellipse([box[0], box[1], box[2] - 1, box[3] - 1], fill=255)
        tag(tags, np.asarray(mask) > 127, {"thing": "dots"}, TAG_WORDS, _TAGGED_SHARE)
    return tags


def draw_sheet(random: Generator, held_out: bool) -> Drawn:
    """A picture with its questions and tags."""
    sheet = compose(random)
    return Drawn(paint(sheet, random), questions_of(sheet, random, held_out=held_out), tags_of(sheet))


LARGE = World(SIZE_PX, GRID_SIDE, (1500, 300, 300), KINDS, TAG_WORDS, draw_sheet)


def _font_px(size: tuple[int, int], random: Generator) -> int:
    """Of the fonts that fit on a sheet, one, as likely as the others."""
    fitting = [span for span in FONTS_PX.values() if span[1] <= 0.6 * min(size)]
    return int(random.integers(*fitting[int(random.integers(len(fitting)))], endpoint=True))


def _extent(text: str, font_px: int) -> tuple[int, int]:
    """Width and height of a letter in pixels."""
    left, top, right, bottom = font_of(font_px).getbbox(text)
    return int(right - left), int(bottom - top)


def _row(letter: Letter) -> float:
    return (letter.box[1] + letter.box[3]) / 2


def _place(sheet: Sheet, width: int, height: int, random: Generator) -> Box | None:
    """A free place, or none: what finds none is not drawn and not asked about. A menu has a column for its letters."""
    margin = _MARGIN_PX * (1 + min(sheet.size) // SIZE_PX)
    across, down = sheet.size[1] - width - margin, sheet.size[0] - height - margin
    if sheet.layout == "menu" and width > _DOT_PX:
        across = max(margin + 1, min(across, margin + sheet.size[1] // 3))
    for _ in range(40):
        x, y = (int(random.integers(margin, max(end, margin + 1))) for end in (across, down))
        box = (x, y, x + width, y + height)
        if not any(touch(box, other, _GAP_PX) for other in [*(one.box for one in sheet.letters), *sheet.dots]):
            return box
    return None


def _furnish(pen: ImageDraw.ImageDraw, sheet: Sheet, letter: Letter) -> None:
    """What a layout puts around a letter: nothing on a sign."""
    left, top, right, bottom = letter.box
    if sheet.layout == "menu":
        pen.line([right + 4, bottom - 1, sheet.size[1] - 8, bottom - 1], fill=_RULE)
    elif sheet.layout == "form":
        pen.rectangle([left - 3, top - 3, right + 2, bottom + 2], outline=_RULE)
    elif sheet.layout == "map":
        pen.line([0, bottom + 3, left, top - 3, sheet.size[1], top - 3], fill=_RULE)


def _write(pen: ImageDraw.ImageDraw, letter: Letter, fill: Colour | int) -> None:
    font: ImageFont.FreeTypeFont = font_of(letter.font_px)
    left, top = font.getbbox(letter.text)[:2]
    bold = letter.font_px // 24
    pen.text((letter.box[0] - left, letter.box[1] - top), letter.text, font=font, fill=fill, stroke_width=bold)
