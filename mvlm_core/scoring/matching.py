"""Metrics that compare words: equal, contained, overlapping, and the verdict that an answer begins with."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from .folding import as_list, bare, fold, words

_ARTICLES = frozenset({"a", "an", "the"})
# "No-one" and "yes-man" are other words, and "yes or no" is no verdict.
_VERDICT = re.compile(r"[\W_]*(yes|no)(?![\w'’-]*\w)(?!\W*(?:\band\b|\bor\b|/)\W*(?:yes|no)\b)")


def exact(prediction: str, answers: Sequence[str] | str) -> float:
    """1 if the prediction is one of the answers, and 0 if not.

    Equal after Unicode composition, case folding, folded space, and with outer sentence punctuation, quotes and
    brackets taken away; nothing else, so that signs, symbols, articles and accents count. Empty equals only empty.
    """
    return float(bare(prediction) in {bare(answer) for answer in as_list(answers)})


def contains(prediction: str, answers: Sequence[str] | str) -> float:
    """1 if the prediction holds one of the answers as whole words next to each other, and 0 if not."""
    told = words(prediction)
    return float(any(_holds(told, words(answer)) or exact(prediction, [answer]) for answer in as_list(answers)))


def _holds(told: Sequence[str], wanted: Sequence[str]) -> bool:
    starts = range(len(told) - len(wanted) + 1) if wanted else ()
    return any(told[start : start + len(wanted)] == wanted for start in starts)


def f1(prediction: str, answers: Sequence[str] | str) -> float:
    """Overlap of words with the answer that overlaps most, 0 to 1: SQuAD's F1 (arXiv 1606.05250), without articles.

    Text that is all articles keeps them, and nothing overlaps with the empty answer but the empty one.
    """
    return max((_f1(_content(prediction), _content(answer)) for answer in as_list(answers)), default=0.0)


def _content(text: str) -> list[str]:
    every = words(text)
    return [word for word in every if word not in _ARTICLES] or every or [fold(text)]


def _f1(told: Sequence[str], wanted: Sequence[str]) -> float:
    same = (Counter(told) & Counter(wanted)).total()
    return 2 * same / (len(told) + len(wanted))


def yes_no(prediction: str, answers: Sequence[str] | str) -> float:
    """1 if the prediction begins with the verdict that an answer begins with, yes or no; 0 without one."""
    told = verdict(prediction)
    return float(told is not None and told in {verdict(answer) for answer in as_list(answers)})


def verdict(text: str) -> str | None:
    """`yes` or `no`, the word that a text begins with; None when it begins otherwise, or names both at once.

    A lone `y` or `n` is one too, as MME reads it (arXiv 2306.13394).
    """
    folded = fold(unicodedata.normalize("NFKC", text))
    alone = {"y": "yes", "n": "no"}.get(bare(folded))
    found = _VERDICT.match(folded)
    return alone or (found[1] if found else None)
