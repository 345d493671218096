"""Metrics by name: read, fitted to rows, guessed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.runtime.errors import MvlmError
from mvlm_core.scoring import METRICS, Reference, agreement, fault, guess, read_metric, score, score_with


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gives_a_score_and_an_empty_answer_none(name):
    held = {"votes": ["yes"] * 4, "options": ["yes", "no"]}
    assert score("yes", ["yes"], name, **held) == 1
    assert score("", ["yes"], name, **held) == 0


def test_metrics_with_a_detail():
    assert score_with(read_metric("number:0.5"), "3.4", Reference(("3",))) == 1
    assert score_with(read_metric(" agreement:f1 "), "a red car", Reference(("red bus",))) == 0.5
    assert str(read_metric("number:0.5")) == "number:0.5"
    assert str(read_metric("exact")) == "exact"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("exactly", "is none of exact"), ("", "is none of"), ("number:half", "no tolerance"),
        ("number:-1", "no tolerance"),
        ("number:inf", "no tolerance"), ("agreement:vqa", "agrees by none of"),
        ("exact:1", "takes nothing behind a colon"),
    ],
)  # fmt: skip
def test_a_metric_that_there_is_not_is_refused(text, why):
    with pytest.raises(MvlmError, match=why):
        read_metric(text)


def test_agreement_is_with_whatever_the_finest_scale_said():
    assert agreement("", [""]) == agreement("Red.", ["red"]) == agreement("red", "red") == 1
    assert agreement("two", ["2"], by="number") == agreement("It's B", ["blue"], "choice", ["red", "blue"]) == 1
    assert agreement("neither", ["neither"], "choice", ["red", "blue"]) == 1
    assert agreement("maybe", ["none"], "choice", ["red", "blue"]) == agreement("", ["no"]) == 0


@pytest.mark.parametrize(
    ("name", "reference", "why"),
    [
        ("vqa", Reference(("a",)), "needs votes"),
        ("exact", Reference(), "needs answers"),
        ("choice", Reference(("a",)), "needs options"),
        ("choice", Reference(("purple",), options=("red", "blue")), "'purple' is none of the options"),
        ("yes_no", Reference(("maybe",)), "begins with yes or no"),
        ("number", Reference(("red",)), "an answer that tells one"),
    ],
)
def test_why_no_answer_could_be_right(name, reference, why):
    assert why in fault(read_metric(name), reference)


@pytest.mark.parametrize(
    ("references", "name"),
    [
        ([Reference(votes=("a", "b"))], "vqa"),
        ([Reference(("B",), options=("red", "blue"))], "choice"),
        ([Reference(("purple",), options=("red", "blue"))], "exact"),
        ([Reference(), Reference()], "agreement"),
        ([Reference(("red", "crimson"))] * 3, "exact"),
        ([Reference(("A dog runs over a green field.",))] * 2 + [Reference(("red",))], "f1"),
    ],
)
def test_guess(references, name):
    assert guess(references).name == name
    assert name in ("exact", "f1") or all(fault(guess(references), reference) is None for reference in references)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30), st.sampled_from(METRICS))
def test_any_text_gets_a_score_and_an_answer_agrees_with_itself(told, answer, name):
    held = {"votes": [answer] * 4, "options": [answer, "another"] if name == "choice" else ()}
    if name == "choice" and fault(read_metric(name), Reference((answer,), options=held["options"])):
        return
    assert 0 <= score(told, [answer], name, **held) <= 1
    if name in ("exact", "number", "relaxed", "anls", "contains", "agreement", "vqa"):
        assert score(answer, [answer], name, **held) == 1
