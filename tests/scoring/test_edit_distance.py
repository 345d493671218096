"""ANLS."""

import random

import pytest

from mvlm_core.scoring import anls
from mvlm_core.scoring.edit_distance import edit_distance


@pytest.mark.parametrize(
    ("told", "answer", "similarity"),
    [
        ("", "abc", 0), ("ab", "ac", 0.5), ("abc", "axy", 0), ("CAFÉ", "Cafe\u0301", 1), ("x   y\n", "x y", 1),
        ("", "", 1),
        ("abc" + " " * 100, "xyz", 0), ("Invoice 4711.", "invoice 4711", 12 / 13),
    ],
)  # fmt: skip
def test_anls(told, answer, similarity):
    assert anls(told, [answer]) == anls(told, ["quite another", answer]) == pytest.approx(similarity)


def test_no_answer_is_like_none():
    assert anls("a", []) == 0


def test_anls_is_lmms_evals():
    theirs = pytest.importorskip("lmms_eval.api.metrics").anls
    draw = random.Random(0)
    for _ in range(2000):
        answer = "".join(draw.choices("abAB 12", k=draw.randint(1, 12))).strip() or "a"
        told = "".join(draw.choice("abc ") if draw.random() < 0.3 else letter for letter in answer).strip() or "b"
        answer, told = " ".join(answer.split()), " ".join(told.split())
        assert anls(told, [answer, "zzz"]) == pytest.approx(theirs([answer, "zzz"], [told])["anls"]), (told, answer)


def test_edit_distance_needs_no_more_than_the_steps_taken():
    draw = random.Random(0)
    for _ in range(200):
        first = "".join(draw.choices("ab", k=draw.randint(0, 8)))
        second, steps = first, draw.randint(0, 3)
        for _ in range(steps):
            at = draw.randint(0, len(second))
            second = second[:at] + draw.choice(["", "c"]) + second[at + draw.randint(0, 1) :]
        assert edit_distance(first, second) == edit_distance(second, first) <= steps
    assert edit_distance("kitten", "sitting") == 3
