"""How the questions of the drawn benchmark are put: several wordings of each kind, some kept for the test split.

The wordings that training never sees use only words that it does see, in another order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from numpy.random import Generator

from .drawn import Question

# A kind, its answer, and the objects that its wordings name.
Asked = tuple[str, str, dict[str, str]]


@dataclass(frozen=True)
class Wordings:
    seen: tuple[str, ...]
    held_out: tuple[str, ...]


WORDINGS: dict[str, Wordings] = {
    "time_of_day": Wordings(
        ("what time of day is it?", "which time of day does the picture show?", "is it day, dusk or night?"),
        ("what time of day does the picture show?",),
    ),
    "ground": Wordings(
        ("what is the ground made of?", "what does the ground show?", "which ground is it?"),
        ("which ground does the picture show?",),
    ),
    "framed": Wordings(
        ("is there a frame?", "does the picture have a frame?", "is the picture in a frame?"),
        ("is there a frame in the picture?",),
    ),
    "largest": Wordings(
        ("what colour is the largest shape?", "which colour does the largest shape have?",
         "colour of the largest shape?"),
        ("which colour is the largest shape?",),
    ),
    "count_large": Wordings(
        ("how many large shapes are there?", "how many shapes are large?", "count the large shapes."),
        ("how many large shapes are in the picture?",),
    ),
    "where": Wordings(
        ("is the {shape} at the top or at the bottom?", "where is the {shape}, at the top or at the bottom?"),
        ("at the top or at the bottom, where is the {shape}?",),
    ),
    "relation": Wordings(
        ("is the {shape} left or right of the {other}?", "on which side of the {other} is the {shape}, left or right?"),
        ("left or right of the {other}, where is the {shape}?",),
    ),
    "smallest": Wordings(
        ("what colour is the smallest shape?", "which colour does the smallest shape have?",
         "colour of the smallest shape?"),
        ("which colour is the smallest shape?",),
    ),
    "dots": Wordings(
        ("how many dots are there?", "count the dots.", "how many black dots are in the picture?"),
        ("how many dots are in the picture?",),
    ),
    "colour_of": Wordings(
        ("what colour is the {shape}?", "which colour does the {shape} have?", "colour of the {shape}?"),
        ("which colour is the {shape}?",),
    ),
    "shape_of": Wordings(
        ("what shape is the {colour} one?", "which shape does the {colour} one have?", "shape of the {colour} one?"),
        ("which shape is the {colour} one?",),
    ),
    "number": Wordings(
        ("what number is printed?", "which number does the picture show?", "read the number."),
        ("which number is printed?",),
    ),
    "letter": Wordings(
        ("what letter is printed?", "which letter does the picture show?", "read the letter."),
        ("which letter is printed?",),
    ),
    "count_shapes": Wordings(
        ("how many shapes are there?", "count the shapes.", "how many shapes does the picture show?"),
        ("how many shapes are in the picture?",),
    ),
    "code": Wordings(
        ("what code is printed?", "which code does the picture show?", "read the code."),
        ("which code is printed?",),
    ),
    "flag": Wordings(
        ("which colours does the flag have?", "what colours are on the flag?", "colours of the flag?"),
        ("which colours are on the flag?",),
    ),
    "paper": Wordings(
        ("what colour is the paper?", "which colour does the paper have?", "colour of the paper?"),
        ("which colour is the paper?",),
    ),
    "letter_of": Wordings(
        ("which letter is {colour}?", "what letter is the {colour} one?", "read the {colour} letter."),
        ("which letter is the {colour} one?",),
    ),
    "ink_of": Wordings(
        ("what colour is the letter {letter}?", "which colour does the {letter} have?", "colour of the {letter}?"),
        ("which colour is the letter {letter}?",),
    ),
    "where_letter": Wordings(
        ("is the {colour} letter at the top or at the bottom?",
         "where is the {colour} letter, at the top or at the bottom?"),
        ("at the top or at the bottom, where is the {colour} letter?",),
    ),
    "moving_colour": Wordings(
        ("what colour is the shape that moves?", "which colour does the shape have that moves?"),
        ("which colour is the shape that moves?",),
    ),
    "moving_shape": Wordings(
        ("what shape is it that moves?", "which shape moves?", "shape of the one that moves?"),
        ("which shape is it that moves?",),
    ),
    "moves": Wordings(
        ("which way does it move?", "does it move left, right, up or down?", "where does it move?"),
        ("which way does the shape move?",),
    ),
    "first_flag": Wordings(
        ("what colour is the flag that comes first?", "which flag comes first?", "colour of the first flag?"),
        ("which colour is the first flag?",),
    ),
    "flashes": Wordings(
        ("how many times does the lamp flash?", "how many flashes are there?", "count the flashes of the lamp."),
        ("how many times are there flashes of the lamp?",),
    ),
    "count_letters": Wordings(
        ("how many letters are there?", "count the letters.", "how many letters does the picture show?"),
        ("how many letters are in the picture?",),
    ),
}  # fmt: skip


def wording(kind: str, random: Generator, *, held_out: bool, **names: str) -> str:
    """One wording of a kind, with the named objects filled in."""
    known = WORDINGS[kind]
    choices = known.seen + known.held_out if held_out else known.seen
    return choices[int(random.integers(len(choices)))].format(**names)


def worded(asked: Iterable[Asked], random: Generator, *, held_out: bool) -> list[Question]:
    """Questions in one wording each; `held_out` also draws those that training never saw."""
    return [Question(kind, wording(kind, random, held_out=held_out, **names), answer) for kind, answer, names in asked]
