"""VQA's soft accuracy and its normaliser."""

import random

import pytest

from mvlm_core.scoring import vqa, vqa_normalise
from mvlm_core.scoring.vqa_accuracy import _REPAIRED


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("An Apple, a day!", "apple day"), ("3.5", "3.5"), ("1,000", "1000"), ("red.", "red"), ("two", "2"),
        ("None", "0"),
        ("dont", "don't"), ("red/blue", "red blue"), ("a red/ blue", "red blue"), ("t-shirt", "t shirt"),
        ("line\none", "line 1"), ("eleven", "eleven"), ("The", ""), ("shouldnt've", "shouldn't've"),
    ],
)  # fmt: skip
def test_normalise(text, same):
    assert vqa_normalise(text) == same


def test_three_others_make_it_right():
    votes = ["red"] * 2 + ["blue"] * 8
    assert vqa("red", votes) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa("Blue.", votes) == 1
    assert vqa("green", votes) == 0
    assert vqa("red", ["red"]) == vqa("red", []) == 0


def test_votes_that_are_all_one_are_normalised_too_and_an_empty_answer_is_no_article():
    assert vqa("Two", ["2"] * 10) == 1
    assert vqa("", ["A"] * 10) == 0
    assert vqa("a", ["A"] * 10) == 1


def test_as_lmms_eval_has_the_official_code():
    """Its normaliser and its leave-one-out, on answers that no normalisation empties."""
    theirs = pytest.importorskip("lmms_eval.tasks._task_utils.vqa_eval_metric").EvalAIAnswerProcessor()
    official = pytest.importorskip("lmms_eval.tasks.vqav2.utils").vqav2_process_results
    draw = random.Random(0)
    some = ["the red", "Red", "red.", "1,000", "1000", "two", "2", "wont", "won't", "t-shirt", "a dog?", "3.5", "none",
            "it's 5 o'clock", "left; right", "\"quoted\"", "x.y", "10 am", "e.g. this"]  # fmt: skip
    for _ in range(1000):
        told, votes = draw.choice(some), draw.choices(draw.sample(some, 5), k=10)
        doc = {"question_id": 0, "answers": [{"answer": vote, "answer_id": n} for n, vote in enumerate(votes)]}
        assert vqa(told, votes) == pytest.approx(official(doc, [told])["exact_match"]), (told, votes)
    for wrong, right in theirs.CONTRACTIONS.items():
        assert vqa_normalise(wrong) == " ".join(theirs.process_digit_article(wrong).split()), (wrong, right)
    assert all(theirs.CONTRACTIONS[wrong] == right for wrong, right in _REPAIRED.items())
