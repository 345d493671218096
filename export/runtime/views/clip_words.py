"""What stands between the frames of a clip in the prompt: numbers, or times, as a model was trained to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

ClipWords = Literal["none", "numbered", "timed"]
KINDS: tuple[ClipWords, ...] = ("none", "numbered", "timed")
# What transformers takes where nothing says how many frames a second there are.
_UNKNOWN_RATE = 24.0
_ANY_LETTER = "a"
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@dataclass(frozen=True)
class Timing:
    """When the frames of a clip were taken.

    Attributes:
        rate: frames a second.
        numbers: in the whole clip, where only some of its frames are meant; None where all are.
        duration_s: of the whole clip; None where nothing says it.
    """

    rate: float = _UNKNOWN_RATE
    numbers: tuple[int, ...] | None = None
    duration_s: float | None = None

    def seconds(self, number: int) -> float:
        """When a frame was taken."""
        return (number if self.numbers is None else self.numbers[number]) / self.rate


def words_around(kind: ClipWords, numbers: Sequence[int], timing: Timing) -> tuple[list[str], str]:
    """What stands before each of some frames of a clip, and what behind the last.

    `numbered` is InternVL's way, `timed` SmolVLM2's (transformers: models/internvl/processing_internvl.py and
    models/smolvlm/processing_smolvlm.py), whose chat template puts a space before a clip and none before a picture.
    """
    if kind == "none":
        return [""] * len(numbers), ""
    if kind == "numbered":
        return [f"{chr(10) if at else ''}Frame{at + 1}: " for at in range(len(numbers))], ""
    seconds = [timing.seconds(number) for number in numbers]
    duration = timedelta(seconds=int(seconds[-1] if timing.duration_s is None else timing.duration_s))
    before = [f"\nFrame from {int(s // 60):02d}:{int(s % 60):02d}:" for s in seconds]
    before[0] = (
        f" You are provided the following series of {in_words(len(numbers))} frames from a {duration} [H:MM:SS]"
        f" video.\n{before[0]}"
    )
    return before, "\n\n"


def ids_of_shown(text: str, ids_of: Callable[[str], Sequence[int]]) -> list[int]:
    """The ids of what stands for a picture or a clip, as they are where a question follows.

    Behind white space a tokenizer may join other pieces than at an end; so it is read with a letter behind it.
    """
    if not text[-1:].isspace():
        return list(ids_of(text))
    return list(ids_of(text + _ANY_LETTER))[: -len(ids_of(_ANY_LETTER))]


def in_words(number: int) -> str:
    """A whole number from 0 up in English, as the package num2words spells it, which SmolVLM2's processor uses."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_ONES[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joint = ", " if rest >= 100 else " and "
    return f"{in_words(thousands)} thousand" + (f"{joint}{in_words(rest)}" if rest else "")
