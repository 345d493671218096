"""VQA's soft accuracy over what several people answered, with the normaliser of its official evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .folding import as_list

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_GROUPED_DIGITS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_UP_TO_TEN = "zero one two three four five six seven eight nine ten"
_NUMBERS = {name: str(n) for n, name in enumerate(_UP_TO_TEN.split())} | {"none": "0"}
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# Each contraction written with one of its apostrophes left out, and one that the official table turns round.
_REPAIRED = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, char in enumerate(word)
    if char == "'"
} | {"somebody'd": "somebodyd"}


def vqa(prediction: str, votes: Sequence[str] | str) -> float:
    """VQA's soft accuracy (arXiv 1505.00468): three other people who gave this answer make it wholly right.

    `votes` holds what each person answered, usually ten. As in the official code each is left out in turn, and of the
    others three suffice; the mean over these is the score, so that of fewer than four votes none makes it 1. Unlike
    there, texts are normalised where all votes are one, too, and what is only articles and marks keeps them: the empty
    answer is not the vote `A`.
    """
    told = _compared(prediction)
    agreeing = [_compared(vote) == told for vote in as_list(votes)]
    count = sum(agreeing)
    scores = [min((count - agrees) / 3, 1.0) for agrees in agreeing]
    return sum(scores) / len(scores) if scores else 0.0


def _compared(text: str) -> str:
    return vqa_normalise(text) or " ".join(text.lower().split())


def vqa_normalise(text: str) -> str:
    """What the official evaluation makes of an answer before it compares: punctuation, number words, contractions."""
    line = text.replace("\n", " ").replace("\t", " ").strip()
    grouped = _GROUPED_DIGITS.search(line) is not None
    bare = line
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in line or f" {mark}" in line
        bare = bare.replace(mark, "" if grouped or beside_space else " ")
    words = [_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", bare).lower().split()]
    return " ".join(_REPAIRED.get(word, word) for word in words if word not in _ARTICLES)
