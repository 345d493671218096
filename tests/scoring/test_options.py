"""Which option an answer names."""

import random

import pytest

from mvlm_core.scoring import choice, chosen_option

_COLOURS = ["red", "blue", "green"]
_NAMED = [
    ("b", 1), ("(b)", 1), ("B.", 1), ("B) blue", 1), ("b. blue", 1), ("The answer is B", 1), ("Answer: B", 1),
    ("The correct answer is option B.", 1), ("I think it's blue", 1), ("Blue", 1), ("A blue car", 1), ("A", 0),
    ("A red", 0),
    ("the answer is a blue one", 1), ("Option B is wrong. Option C is right", 2), ("not A but B", 1), ("答案是B。", 1),
    ("Ｂ", 1), ("**B**", 1), ("\\boxed{B}", 1), ("B blue", 1), ("a", 0), ("A: red", 0), ("B-blue", 1),
    ("it is (C) because B", 2), ("The blue one, so B", 1), ("I choose C", 2), ("The answer is: (A).", 0),
    ("the answer is b.", 1), ("It is a red car", 0), ("B, because it is red", 1), ("A is right", 0), ("option c", 2),
    ("Answer:C", 2), ("'B'.", 1), ("Not sure: A, B are wrong; it is C", 2),
]  # fmt: skip
_NONE = [
    "", "?", "A or B", "A, B", "A and B", "(A) or (B)", "b or c", "red or blue", "scored", "Both", "bluegreen", "A car",
    "C#", "U.S.A.", "A cat sleeps", "D", "The answer is D", "AB", "I think so", "B2",
]  # fmt: skip


@pytest.mark.parametrize(("told", "option"), _NAMED)
def test_names_one(told, option):
    assert chosen_option(told, _COLOURS) == option


@pytest.mark.parametrize("told", _NONE)
def test_names_none_or_several(told):
    assert chosen_option(told, _COLOURS) is None


@pytest.mark.parametrize(
    ("told", "options", "option"),
    [
        ("A cat", ["dog", "cat"], 1), ("It is light blue.", ["blue", "light blue"], 1), ("-5", ["5", "-5"], 1),
        ("It is vitamin C", ["vitamin A", "vitamin C", "vitamin B"], 1), ("The answer is -5", ["5", "-5"], 1),
        ("B", ["A. red", "B. blue"], 1), ("blue", ["A. red", "B. blue"], 1), ("No, there is none", ["yes", "no"], 1),
        ("It is 2.", ["1", "2", "12"], 1),
        ("I see a dog", ["ape", "bee", "cow", "d", "e", "f", "g", "h", "cat", "dog"], 9), ("红色", ["蓝色", "红色"], 1),
        ("👎", ["👍", "👎"], 1), ("red", ["red", "red"], None),
    ],
)  # fmt: skip
def test_options_of_every_kind(told, options, option):
    assert chosen_option(told, options) == option


def test_answers_are_letters_or_texts():
    for answer in ("B", "b", "(B)", "blue", "B. blue"):
        assert choice("It is blue.", [answer], _COLOURS) == 1
        assert choice("red", answer, _COLOURS) == 0
    assert choice("red", ["A", "green"], _COLOURS) == choice("C", ["A", "green"], _COLOURS) == 1
    assert choice("", ["A"], ["red", "blue"]) == 0


def test_an_answer_that_is_no_option_is_refused():
    with pytest.raises(ValueError, match="'purple' is none of the options"):
        choice("red", ["purple"], _COLOURS)


def test_as_lmms_eval_and_mmbench_find_it():
    """Where both of them find the same option, ours is that one."""
    extract = pytest.importorskip("lmms_eval.tasks._task_utils.mcq_extract").extract_mcq_answer
    mmbench = pytest.importorskip("lmms_eval.tasks.mmbench.mmbench_evals").MMBench_Evaluator()
    draw = random.Random(0)
    things = ["red", "blue", "a cat", "two dogs", "on the left", "12", "umbrella", "Paris"]
    forms = ["{L}", "({L})", "{L}.", "{L}) {text}", "{L}. {text}", "The answer is {L}", "The answer is ({L}).",
             "I choose {L}",
             "Answer: {L}", "The correct answer is {L}.", "{L}: {text}", "so it must be {L}",
             "{L}, because of it"]  # fmt: skip
    agreed = 0
    for _ in range(2000):
        options = draw.sample(things, 4)
        number = draw.randrange(4)
        told = draw.choice(forms).format(L="ABCD"[number], text=options[number])
        named = extract(told, list("ABCD"))
        if named == mmbench.can_infer(told, dict(zip("ABCD", options, strict=True))):
            agreed += 1
            assert chosen_option(told, options) == "ABCD".index(named), (told, options)
        text = f"I believe it shows {options[number]}"
        inferred = mmbench.can_infer_text(text, dict(zip("ABCD", options, strict=True)))
        assert not inferred or chosen_option(text, options) == "ABCD".index(inferred), (text, options)
    assert agreed > 1000
