"""Is this answer right."""

import pytest

from mvlm_core.scoring import exact_match, normalise, score, vqa_accuracy


@pytest.mark.parametrize(
    ("prediction", "answers", "right"),
    [
        ("Red", ["red"], 1),
        ("the star.", ["star"], 1),
        ("top  left", ["top left"], 1),
        ("47", ["4 7"], 0),
        ("", ["red"], 0),
    ],
)
def test_exact_match(prediction, answers, right):
    assert exact_match(prediction, answers) == right


def test_vqa_accuracy_is_soft():
    answers = ["red"] * 2 + ["blue"] * 8
    assert vqa_accuracy("red", answers) == pytest.approx(2 / 3)
    assert vqa_accuracy("blue", answers) == 1
    assert score("red", answers) == pytest.approx(2 / 3)
    assert score("red", ["red", "crimson"]) == 1


def test_normalise():
    assert normalise("An Apple, a day!") == "apple day"
