"""Numeric values, and what counts as one."""

import random

import pytest

from mvlm_core.scoring import number, relaxed

_SAME = [
    ("−5", "-5"), ("twenty-one", "21"), ("one hundred and five", "105"), ("two thousand three hundred", "2,300"),
    ("There are 3 dogs.", "3"), ("1.5 million", "1,500,000"), ("1 000", "1000"), ("1\u202f000", "1000"),
    ("1'000", "1000"),
    ("12,34,567", "1234567"), ("12:30", "12:30"), ("none", "0"), ("3,5", "3.5"), ("1.000.000", "1000000"),
    ("1.000,5", "1000.5"), ("1,000.50", "1000.5"), ("٣", "3"), ("２", "2"), ("½", "0.5"), ("2½", "2.5"), ("1/2", "0.5"),
    ("Ⅳ", "4"), ("minus five", "-5"), ("three point one four", "3.14"), ("two and a half", "2.5"), ("5 kg", "5"),
    ("5kg", "5"), ("7th", "7"), ("1e3", "1000"), ("1.2x10^3", "1200"), ("-$5", "-5"), ("a dozen", "12"), ("+5", "5"),
    ("five hundred thousand", "500000"), ("05", "5"), ("5.0", "5"), ("100 000", "100000"), ("1e999", "1e999"),
    ("50%", "50"),
    ("hundreds", "hundreds"), ("0,123", "0.123"), ("Fifty five", "55"), ("one-half", "0.5"),
    ("half a million", "500000"), ("two dozen", "24"), ("a hundred", "100"),
]  # fmt: skip
_OTHER = [
    ("-5", "5"), ("2 or 3", "2"), ("3:5", "3.5"), ("", "5"), ("", "0"), ("B2", "2"), ("one two", "3"), ("10-12", "10"),
    ("1,2,3", "1"), ("no one", "1"), ("5²", "25"), ("12/05/2024", "12"), ("1,000", "1"), ("version 3.5.2", "3.5"),
    ("1.0000001", "1"), ("red", "5"), ("3.5", "35"), ("two and three", "2"),
]  # fmt: skip


@pytest.mark.parametrize(("told", "answer"), _SAME)
def test_same_number(told, answer):
    assert number(told, [answer]) == number(answer, ["no number", told]) == 1


@pytest.mark.parametrize(("told", "answer"), _OTHER)
def test_other_number(told, answer):
    assert number(told, [answer]) == number(answer, [told]) == 0


def test_tolerance_is_in_the_unit_of_the_number_and_its_ends_belong_to_it():
    assert number("3.1", ["3"], tolerance=0.1) == 1
    assert number("2.9", "3", tolerance=0.1) == 1
    assert number("3.11", ["3"], tolerance=0.1) == 0


@pytest.mark.parametrize(
    ("told", "answer", "right"),
    [
        ("5%", "0.05", 1), ("5 %", "0.05", 1), ("5%", "5", 0), ("1,040", "1000", 1), ("95", "100", 1),
        ("105", "100", 1),
        ("94", "100", 0), ("0", "0.0", 1), ("0.01", "0", 0), ("-104", "-100", 1), ("-100", "100", 0),
        ("Red.", "red", 1),
        ("1.05", "1", 1), ("", "0", 0), ("five", "5", 0), ("about 100", "100", 0), ("2012", "2010", 1), ("nan", "5", 0),
    ],
)  # fmt: skip
def test_relaxed(told, answer, right):
    assert relaxed(told, [answer]) == relaxed(told, ["nothing", answer]) == right


def test_relaxed_is_chartqas():
    theirs = pytest.importorskip("lmms_eval.tasks.chartqa.utils").relaxed_correctness
    draw = random.Random(0)
    for _ in range(3000):
        kind = draw.choice(["{:.0f}", "{:.2f}", "{:.1f}%", "{:.3f}", "bar {:.0f}"])
        value = draw.uniform(-200, 200) or 1.0
        told, answer = kind.format(value * draw.uniform(0.9, 1.1)), kind.format(value)
        if "bar" not in answer and float(answer.rstrip("%")) == 0:  # theirs compares as text with a zero
            continue
        assert relaxed(told, [answer]) == theirs(told, answer), (told, answer)
