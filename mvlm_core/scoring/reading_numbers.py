"""The number that a text tells, in digits or in English words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from .folding import bare, fold

_UP_TO_NINETEEN = """
zero one two three four five six seven eight nine ten
eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
"""
_TIMES_TEN = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {name: float(n) for n, name in enumerate(_UP_TO_NINETEEN.split())} | {"none": 0.0, "half": 0.5}
_TENS = {name: 10.0 * n for n, name in enumerate(_TIMES_TEN.split(), 2)}
_LARGE = {"dozen": 12.0, "hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_NAMED = _SMALL | _TENS | _LARGE
_NAME = f"(?:{'|'.join(_NAMED)})"

# Groups of thousands: 1,000 and 1 000 and 1'000, and 12,34,567; in the other style 1.000.000 and 1.000,5. A point or
# a comma that groups nothing is the decimal one.
_GROUPS = r"[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+|(?:['’]\d{3})+)(?!\d)|[1-9]\d?(?:,\d{2})+,\d{3}(?!\d)"
_POINTED = r"[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,}"
_POWER = r"(?:e[+-]?\d+|\s?[x×*]\s?10\^[+-]?\d+)?"
_SIGNED = rf"[+-]?[$€£¥]?(?:{_POINTED}|(?:{_GROUPS})(?:\.\d+)?|\d+/[1-9]\d*|\d+(?:[.,]\d+)?|\.\d+){_POWER}"
# Not part of a word, a time, a date, a ratio or a list; a unit may follow at once.
_ALONE = rf"(?<![\w.])(?<!\d[.,:/]){_SIGNED}(?!\d|[.,:/]\d|[²³¹⁰⁴-⁹])"
_PHRASE = re.compile(
    rf"(?P<minus>\b(?:minus|negative)\s+)?(?P<head>{_ALONE}|\b(?<!no ){_NAME}\b)"
    rf"(?P<rest>(?:(?:\s+(?:and\s+)?(?:a\s+)?|-){_NAME}s?\b)*)(?P<point>\s+point(?:\s+{_NAME}\b)+)?"
)
_WHOLE = re.compile(rf"(?P<number>{_SIGNED}) ?(?P<percent>%?)")
_DASHES = str.maketrans(dict.fromkeys("−–—‐‑﹣－", "-"))


def read_number(text: str) -> float | None:
    """The number that a text tells: `two dogs` is 2, `1,000 m` 1000. None when it tells none, or several."""
    plain = _plain(fold(text))
    if len(plain) == 1:  # Roman, circled and Chinese numerals too
        return unicodedata.numeric(plain, None)
    values = {value for found in _PHRASE.finditer(plain) for value in _values(found)}
    return values.pop() if len(values) == 1 else None


def whole_number(text: str) -> float | None:
    """The number that a text is from end to end, in digits; `5 %` is 0.05. None when it is none."""
    found = _WHOLE.fullmatch(_plain(bare(text)))
    return _value(found["number"]) / (100 if found["percent"] else 1) if found else None


def _plain(text: str) -> str:
    """Digits of every script as 0 to 9, dashes as the hyphen, and a fraction in one character as a decimal."""
    ascii_digits = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in text)
    return re.sub(r"(\d*) ?([¼-¾⅐-⅞])", _mixed, ascii_digits.translate(_DASHES))


def _mixed(found: re.Match[str]) -> str:
    return repr(int(found[1] or 0) + unicodedata.numeric(found[2]))


def _value(digits: str) -> float:
    text = re.sub(r"[ '’$€£¥]", "", re.sub(r"\s?[x×*]\s?10\^", "e", digits))
    if "/" in text:
        above, below = text.split("/")
        return float(above) / float(below)
    if re.match(rf"[+-]?(?:{_POINTED})", text):
        return float(text.replace(".", "").replace(",", "."))
    grouped = re.match(rf"[+-]?(?:{_GROUPS})", text)
    return float(text.replace(",", "" if grouped else "."))


def _values(found: re.Match[str]) -> list[float]:
    """The numbers of a phrase: several, where a word cannot be a part of the number before it, as in `two three`."""
    head = found["head"]
    first = _Number()
    numbers = [first]
    if head in _NAMED:
        first.take(head)
    else:
        first.current, first.room = _value(head), 1.0
    for added, name in re.findall(rf"(\band\s+)?(?:a\s+)?({_NAME})", found["rest"]):
        if name == "half" and not added:  # `one half`
            numbers[-1].current *= 0.5
        elif not numbers[-1].take(name):
            numbers.append(_Number())
            numbers[-1].take(name)
    told = [number.done + number.current for number in numbers]
    if found["point"]:
        told[-1] += _decimals(re.findall(_NAME, found["point"]))
    return [-value for value in told] if found["minus"] else told


def _decimals(names: Iterable[str]) -> float:
    return float("0." + "".join(f"{_NAMED[name]:.0f}" for name in names))


@dataclass
class _Number:
    """A number told in words: whole thousands done, what is counted now, and below what the next word must be."""

    done: float = 0.0
    current: float = 0.0
    room: float = inf

    def take(self, name: str) -> bool:
        """Add a word; False when it is no part of this number."""
        value = _NAMED[name]
        if name not in _LARGE:
            if not (self.room == inf or 0 < value < self.room):
                return False
            self.current += value
            self.room = 10.0 if name in _TENS else 1.0
        elif value < 1000:
            self.current = (self.current or 1) * value
            self.room = value
        else:
            self.done, self.current = self.done + (self.current or 1) * value, 0.0
            self.room = value
        return True
