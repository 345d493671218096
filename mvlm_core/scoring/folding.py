"""What makes two texts the same, and what the words of a text are: Unicode folded, signs kept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# Full stop, comma, colon, semicolon, exclamation and question mark, and the plain quotes, in every script that has
# its own; the other quotes and the brackets are known by their categories.
_SENTENCE_MARKS = frozenset(".,:;!?\"'¡¿…。、，．：；！？｡､؟،؛۔।॥։՝՜՞።፣፤፥፧＂＇")
_PAIRED = frozenset({"Ps", "Pe", "Pi", "Pf"})

# A letter of these scripts is taken for a word: they put no space between words.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)  # fmt: skip
_KINDS = {"'": "q", ".": "p", ",": "p", ":": "p", "/": "p", "+": "s", "-": "n", "−": "n", "#": "h", "\u200c": "j",
          "\u200d": "j", "`": " ", "^": " ", "|": " ", "~": " "}  # fmt: skip
# Over the kinds of the characters, one letter each: l letter, d digit, m mark, c a letter that is a word, y symbol,
# r half of a flag, and those of `_KINDS`.
_WORD = re.compile(
    r"(?:(?<![ldmc])[sn](?=p?d))?(?:(?<![ldmcp])p(?=d))?"  # the sign and the point that a number begins with
    r"[ld][ldm]*(?:(?:(?<=d)p(?=d)|(?<=[lm])q(?=l)|j)[ldm]+)*(?:(?<=[lm])[sh]{1,2}(?![ldmc]))?"  # 3.5, don't, C++
    r"|cm*|rr|[yr]m*(?:jym*)*"
)
_POSSESSIVE = re.compile(r"(?<=\w)'s\b")


def fold(text: str) -> str:
    """Composed (NFC), without case, every run of white space one space, none at the ends."""
    caseless = unicodedata.normalize("NFD", text).casefold()
    return " ".join(unicodedata.normalize("NFC", caseless).split())


def bare(text: str) -> str:
    """Folded, without the sentence punctuation, quotes and brackets around it; signs and symbols stay.

    Text that is nothing else (`?`, `:-)`) stays as it is: then the marks are what was said.
    """
    folded = fold(text)
    start, end = 0, len(folded)
    while start < end and _is_outer(folded[start]) and not _begins_number(folded, start):
        start += 1
    while end > start and _is_outer(folded[end - 1]):
        end -= 1
    inner = folded[start:end].strip()
    return inner if inner.strip("-_") else folded


def _is_outer(char: str) -> bool:
    return char == " " or char in _SENTENCE_MARKS or unicodedata.category(char) in _PAIRED


def _begins_number(text: str, at: int) -> bool:
    """Whether the mark is the decimal point of a number that is written without a zero: `.5` is not `5`."""
    return text[at] in ".," and text[at + 1 : at + 2].isdecimal()


def words(text: str) -> list[str]:
    """The words of a text, folded: letters, whole numbers with their signs and points, symbols; no punctuation."""
    folded = _POSSESSIVE.sub(" 's", fold(text).replace("’", "'"))
    kinds = "".join(map(_kind, folded))
    return [folded[slice(*found.span())] for found in _WORD.finditer(kinds)]


def _kind(char: str) -> str:
    if char in _KINDS:
        return _KINDS[char]
    category, point = unicodedata.category(char), ord(char)
    if 0x1F1E6 <= point <= 0x1F1FF:
        return "r"
    if category[0] == "M" or 0x1F3FB <= point <= 0x1F3FF:  # skin tones are marks in all but name
        return "m"
    if category[0] == "L":
        return "c" if any(low <= point <= high for low, high in _UNSPACED) else "l"
    return {"N": "d", "S": "y"}.get(category[0], " ")


def as_list(answers: Sequence[str] | str) -> list[str]:
    """One answer or several, as several."""
    return [answers] if isinstance(answers, str) else list(answers)
