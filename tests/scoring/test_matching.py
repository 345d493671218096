"""Equal, contained, overlapping, and the verdict that an answer begins with."""

import random

import pytest

from mvlm_core.scoring import contains, exact, f1, yes_no

_SAME = [
    ("(.5)", ".5"), ("“Red”", "red"), ("STRASSE", "Straße"), ("赤。", "赤"), ("«oui»", "oui"), ("👍.", "👍"),
    ("[A]", "A"),
    ("A)", "a"), ("İ", "i̇"), ("Red\n", "red"), ("top \u00a0left", "top left"), ("¿sí?", "sí"), ("लाल।", "लाल"),
    ("", ""), ("?", "?"), ("-5.", "-5"), ("C++!", "c++"), ("Å", "\u212b"),
]  # fmt: skip
_OTHER = [
    ("?", "!"), ("?", ""), ("", "?"), (":-)", ":-("), (".5", "5"), (",5", "5"), ("5%", "5"), ("$5", "5"), ("+5", "5"),
    ("−5", "5"), ("5°", "5"), ("the star", "star"), ("👍🏽", "👍"), ("🇩🇪", "🇩🇰"), ("don’t", "don't"), ("47", "4 7"),
    ("1,000", "1000"), ("2", "two"), ("café", "cafe"), ("①", "1"), ("red car", "redcar"), ("", "the"), ("#1", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("told", "answer"), _SAME)
def test_same(told, answer):
    assert exact(told, [answer]) == exact(answer, [told]) == 1


@pytest.mark.parametrize(("told", "answer"), _OTHER)
def test_other(told, answer):
    assert exact(told, [answer]) == exact(answer, [told]) == 0


def test_any_synonym_is_right_however_many_and_one_answer_may_stand_alone():
    assert exact("grey", [*"abcdefghij", "grey"]) == 1
    assert exact("grey", "grey") == 1
    assert exact("g", "grey") == 0
    assert exact("grey", []) == contains("grey", []) == f1("grey", []) == yes_no("yes", []) == 0


@pytest.mark.parametrize(
    ("told", "answer", "right"),
    [
        ("-5", "5", 0), ("3.5 m", "5", 0), ("C#", "C", 0), ("I use C++.", "C++", 1), ("का", "क", 0),
        ("a dark  Red car", "dark red", 1), ("dark, red", "red", 1), ("", "red", 0), ("It's 1,000.", "1,000", 1),
        ("1,000", "1", 0), ("这是红色的", "红色", 1), ("the cat's bowl", "cat", 1), ("👍🏽", "👍", 0),
        ("👍👎", "👎", 1),
        ("🇩🇪🇩🇰", "🇩🇰", 1), ("I don't know", "don", 0), ("infrared", "red", 0), ("a red-brown dog", "red", 1),
        ("x", "", 0), ("", "", 1), ("?", "?", 1), ("red blue", "red green", 0), ("e\u0301t\u00e9", "été", 1),
        ("at 3:5", "3.5", 0),
    ],
)  # fmt: skip
def test_contains(told, answer, right):
    assert contains(told, [answer]) == right


@pytest.mark.parametrize(
    ("told", "answer", "right"),
    [
        ("Yes, it does", "yes", 1), ("yes", "Yes, there is one.", 1), ("**No**, there is none", "no", 1),
        ("YES!", "yes", 1),
        ("y", "yes", 1), ("N.", "no", 1), ("ｙｅｓ", "yes", 1), ("yes\nno smoke", "yes", 1),
        ("No problem here", "no", 1),
        ("no", "yes", 0), ("Nothing", "no", 0), ("Not at all", "no", 0), ("nobody", "no", 0), ("No-one", "no", 0),
        ("Yesterday", "yes", 0), ("yes and no", "yes", 0), ("Yes/No", "no", 0), ("yes or no", "no", 0), ("", "no", 0),
        ("maybe", "maybe", 0), ("Is there? Yes", "yes", 0),
    ],
)  # fmt: skip
def test_yes_no(told, answer, right):
    assert yes_no(told, [answer]) == right


@pytest.mark.parametrize(
    ("told", "answer", "overlap"),
    [
        ("a red car", "the red car", 1), ("red car", "blue car", 0.5), ("red red", "red", 2 / 3), ("", "A", 0),
        ("the", "A", 0), ("", "", 1), ("-5", "5", 0), ("dog", "cat", 0), ("DOG!", "dog", 1),
    ],
)  # fmt: skip
def test_f1(told, answer, overlap):
    assert f1(told, [answer]) == pytest.approx(overlap)
    assert f1(told, ["nothing of it", answer]) == pytest.approx(overlap)


def test_f1_is_squads():
    theirs = pytest.importorskip("lmms_eval.tasks.mmsearch.score.f1_score").get_f1_score
    draw = random.Random(0)
    some = ["a", "the", "an", "Red", "red,", "car", "Car.", "dog", "(two)", "2", "blue?", "on"]
    for _ in range(2000):
        told, answer = (" ".join(draw.choices(some, k=draw.randint(1, 6))) + " end" for _ in range(2))
        assert f1(told, [answer]) == pytest.approx(theirs(told, answer)), (told, answer)
