"""Multiple choice: which of the options an answer names, by its letter or by its text."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence

from .folding import as_list, bare, words

# A letter is a word of its own: not `AB`, `B2` or `é`, not a grade or a language (`A+`, `C#`), not `U.S.A.` or `I'm`;
# scripts that put no space between words may touch it.
_IN_WORD = r"[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_BEFORE = rf"(?<!{_IN_WORD})(?<![-+#'’&@$])(?<![A-Za-z]\.)"
_AFTER = rf"(?!{_IN_WORD}|[-+#]|['’&]\w|\.[A-Za-z](?!{_IN_WORD}))"
_LARGE, _SMALL = rf"{_BEFORE}(?P<large>[A-Z]){_AFTER}", rf"{_BEFORE}(?P<small>[a-z]){_AFTER}"
# How sure the place of a letter makes that it is the answer, surest first. A small letter counts only where it can be
# no part of a sentence; in the last place, the whole text, the texts of the options are left out.
_PHRASE = (
    r"\b(?:(?:answer|option|choice|letter)(?:\s+(?:is|should\s+be|would\s+be))?(?:\s+(?:option|choice))?"
    r"|i\s+(?:choose|select|pick))\b"
)
_PLACES = (
    rf"(?i:{_PHRASE})[\s:\"*(\[]*(?:{_LARGE}|{_SMALL}(?=\W*(?:$|[.,;)\]\n])))",
    rf"^\W*(?:{_LARGE}(?=[.):,\]])|{_SMALL}(?=[.)\]]))",
    rf"[(\[](?:{_LARGE}|{_SMALL})[)\]]",
    _LARGE,
)
# `A cat sleeps` has an article and `I think` a pronoun; `A is right` a letter.
_ARTICLE = re.compile(r"[AI]\s+(?!(?:is|was|because|since|as|seems|looks|must|would|and|or)\b)\w")
_JOINED = re.compile(r"[)\]*\s]*(?:\b(?:and|or)\b|[,/&])[\s(\[*]*(?:(?:option|choice)\b[\s(\[*]*)?", re.IGNORECASE)


def choice(prediction: str, answers: Sequence[str] | str, options: Sequence[str]) -> float:
    """1 if the prediction names a right option, by its letter or its text, and 0 if not or if it names several.

    `answers` are letters or texts of options; the options are lettered from A. Found by rule as MMBench
    (arXiv 2307.06281) and lmms-eval do: a letter that is a word of its own, else the one option whose text the answer
    holds. Raises `ValueError` for an answer that names no option.
    """
    right = {answer: chosen_option(answer, options) for answer in as_list(answers)}
    strange = [answer for answer, option in right.items() if option is None]
    if strange:
        raise ValueError(f"the answer {strange[0]!r} is none of the options {', '.join(map(repr, options))}")
    return float(chosen_option(prediction, options) in right.values())


def chosen_option(prediction: str, options: Sequence[str]) -> int | None:
    """The number of the option that an answer names, counted from 0; None when it names none, or several."""
    texts, text = _without_labels(options), unicodedata.normalize("NFKC", prediction)
    letters = string.ascii_uppercase[: len(texts)]
    lone = re.fullmatch(rf"\W*(?:(?:option|choice)\s+)?([{letters}])(?![+#-])\W*", text, re.IGNORECASE)
    if lone:
        return letters.index(lone[1].upper())
    same = {number for number, option in enumerate(texts) if _without_article(text) == _without_article(option)}
    named = same or _by_letter(text, letters, texts) or _by_text(text, texts)
    return named.pop() if len(named) == 1 else None


def _without_article(text: str) -> str:
    return re.sub(r"^(?:an?|the) (?=.)", "", bare(text))


def _without_labels(options: Sequence[str]) -> list[str]:
    """The texts of options that carry their own letters, as in `A. red`."""
    labelled = zip(string.ascii_uppercase, options, strict=False)
    texts = [re.sub(rf"^\s*\(?{letter}[.):]\s*(?=\S)", "", option) for letter, option in labelled]
    carried = len(texts) == len(options) and all(text != option for text, option in zip(texts, options, strict=True))
    return texts if carried else list(options)


def _by_letter(text: str, letters: str, texts: Sequence[str]) -> set[int]:
    """The option that a letter names in the surest place that has any, and those joined to it by `or` and the like.

    Of several in one place the last is meant: a text that weighs the options ends with the answer.
    """
    for place in _PLACES:
        within = _without(text, texts) if place is _LARGE else text
        found = list(_mentions(place, within, letters))
        if found:
            number, start, end = found[-1]
            joined = [
                other
                for other, begins, ends in _mentions(_LARGE, within, letters)
                if _JOINED.fullmatch(within, ends, start) or _JOINED.fullmatch(within, end, begins)
            ]
            return {number, *joined}
    return set()


def _mentions(place: str, text: str, letters: str) -> Iterator[tuple[int, int, int]]:
    """Where letters of options stand: (number of the option, start and end of the letter)."""
    for found in re.finditer(place, text):
        letter, start = found[found.lastgroup or 0], found.start(found.lastgroup or 0)
        if letter.upper() in letters and not _ARTICLE.match(text, start):
            yield letters.index(letter.upper()), start, start + 1


def _without(text: str, options: Sequence[str]) -> str:
    """The text with the options' own texts blanked, so that no letter within one of them counts."""
    for option in sorted(options, key=len, reverse=True):
        if len(option) > 1:
            text = re.sub(re.escape(option), " ", text, flags=re.IGNORECASE)
    return text


def _by_text(text: str, texts: Sequence[str]) -> set[int]:
    """The options whose words stand in the text, but for those within a longer one: `blue` within `light blue`."""
    told = words(text)
    spans = [
        (number, start, start + len(wanted))
        for number, wanted in enumerate(map(words, texts))
        for start in range(len(told) - len(wanted) + 1)
        if wanted and told[start : start + len(wanted)] == wanted
    ]
    return {
        number
        for number, start, end in spans
        if not any(s <= start and end <= e and e - s > end - start for _, s, e in spans)
    }
