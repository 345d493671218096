"""Is this answer right: pure functions, named as the field names them. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ARTICLES = {"a", "an", "the"}


def normalise(text: str) -> str:
    """Lower case, without articles, punctuation and doubled spaces, as VQA's evaluation does before it compares."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in _ARTICLES)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers after normalisation, and 0 if not."""
    return float(normalise(prediction) in {normalise(answer) for answer in answers})


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA's soft accuracy (arXiv 1505.00468): three people who gave this answer make it wholly right."""
    agreeing = sum(normalise(prediction) == normalise(answer) for answer in answers)
    return min(agreeing / 3, 1.0)


def score(prediction: str, answers: Sequence[str]) -> float:
    """`vqa_accuracy` where several people answered, `exact_match` where one answer or its synonyms are given."""
    return vqa_accuracy(prediction, answers) if len(answers) >= 10 else exact_match(prediction, answers)
