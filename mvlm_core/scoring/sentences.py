"""Is an answer a sentence: then hardly anybody gives it again word for word."""

from __future__ import annotations

from .folding import words

# More words than a short answer has.
_MOST_WORDS = 5


def is_sentence(answer: str) -> bool:
    return len(words(answer)) > _MOST_WORDS
