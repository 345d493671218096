"""Metrics that compare numeric values."""

from __future__ import annotations

from collections.abc import Sequence

from .folding import as_list
from .matching import exact
from .reading_numbers import read_number, whole_number

# How far binary fractions may miss a bound that a number stands on.
_NEARLY = 1e-9


def number(prediction: str, answers: Sequence[str] | str, tolerance: float = 0.0) -> float:
    """1 if the number that the prediction tells is within `tolerance` of an answer's, and 0 if not.

    `tolerance` is in the unit of the numbers. Digits of every script, separators, signs and English number words are
    read, and words and units around them left out. Text that tells no number, or several, is right only if it is
    `exact`.
    """
    told = read_number(prediction)
    wanted = [read_number(answer) for answer in as_list(answers)]
    return float(any(_within(told, value, tolerance) for value in wanted)) or exact(prediction, answers)


def relaxed(prediction: str, answers: Sequence[str] | str) -> float:
    """ChartQA's relaxed accuracy (arXiv 2203.10244): a number within 5 % of an answer's, and `exact` otherwise.

    As in its code a percentage counts as hundredths, and only what is a number from end to end is one; unlike there,
    separators of thousands are read.
    """
    told = whole_number(prediction)
    wanted = [whole_number(answer) for answer in as_list(answers)]
    return float(any(_within(told, value, 0.05 * abs(value or 0)) for value in wanted)) or exact(prediction, answers)


def _within(told: float | None, wanted: float | None, tolerance: float) -> bool:
    if told is None or wanted is None:
        return False
    return abs(told - wanted) <= tolerance + _NEARLY * max(abs(told), abs(wanted))
