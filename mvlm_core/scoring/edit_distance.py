"""ANLS: how few letters must change to make the prediction the answer."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from .folding import as_list

_THRESHOLD = 0.5


def anls(prediction: str, answers: Sequence[str] | str) -> float:
    """Normalised edit similarity to the nearest answer, 0 below one half: DocVQA's metric (arXiv 1905.13648).

    As in its code, without case and with folded space; here composed accents equal decomposed ones as well.
    """
    told = _folded(prediction)
    best = max((_similarity(told, _folded(answer)) for answer in as_list(answers)), default=0.0)
    return best if best >= _THRESHOLD else 0.0


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def _similarity(told: str, wanted: str) -> float:
    longest = max(len(told), len(wanted))
    return 1 - edit_distance(told, wanted) / longest if longest else 1.0


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's: how many characters must be put in, taken out or replaced to make one text the other."""
    row = list(range(len(second) + 1))
    for i, mine in enumerate(first, 1):
        above, row = row, [i]
        for j, other in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (mine != other)))
    return row[-1]
