"""Metrics by name: what scores a row, whether it can, and which fits a row that names none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from export.runtime.errors import MvlmError

from .edit_distance import anls
from .folding import as_list
from .matching import contains, exact, f1, verdict, yes_no
from .numbers import number, relaxed
from .options import choice, chosen_option
from .reading_numbers import read_number
from .sentences import is_sentence
from .vqa_accuracy import vqa

_OF_ANSWERS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact": exact, "yes_no": yes_no, "number": number, "relaxed": relaxed, "anls": anls, "contains": contains,
    "f1": f1,
}  # fmt: skip
METRICS = (*_OF_ANSWERS, "vqa", "choice", "agreement")


@dataclass(frozen=True)
class Metric:
    """A metric by name, with what stands behind a colon: `number:0.5` has a tolerance, `agreement:f1` a metric."""

    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.detail}" if self.detail else self.name


def read_metric(text: str) -> Metric:
    """Read a metric as rows and options of commands say it. Raises `MvlmError` for one that there is not."""
    name, _, detail = text.strip().partition(":")
    if name not in METRICS:
        raise MvlmError(f"the metric {text!r} is none of {', '.join(METRICS)}")
    if name == "number" and detail:
        try:
            fits = 0 <= float(detail) < float("inf")
        except ValueError:
            fits = False
        if not fits:
            raise MvlmError(f"the metric {text!r} has no tolerance behind its colon: number:0.5 allows half a unit")
    elif name == "agreement" and detail:
        if detail not in (*_OF_ANSWERS, "choice"):
            raise MvlmError(f"{text!r} agrees by none of {', '.join([*_OF_ANSWERS, 'choice'])}")
    elif detail:
        raise MvlmError(f"the metric {name} takes nothing behind a colon, and {text!r} has something")
    return Metric(name, detail)


@dataclass(frozen=True)
class Reference:
    """What an answer is held against: `answers` are synonyms, `votes` what several people said, `options` a choice."""

    answers: tuple[str, ...] = ()
    votes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def score_with(metric: Metric, prediction: str, reference: Reference) -> float:
    """The score of a prediction, 0 to 1."""
    match metric.name:
        case "vqa":
            return vqa(prediction, reference.votes)
        case "choice":
            return choice(prediction, reference.answers, reference.options)
        case "number":
            return number(prediction, reference.answers, float(metric.detail or 0))
        case "agreement":
            return agreement(prediction, reference.answers, metric.detail or "exact", reference.options)
    return _OF_ANSWERS[metric.name](prediction, reference.answers)


def agreement(prediction: str, finest: Sequence[str] | str, by: str = "exact", options: Sequence[str] = ()) -> float:
    """How well a prediction agrees with the finest scale's own answer, by another metric; empty agrees with empty."""
    if by == "choice":
        own = {chosen_option(answer, options) for answer in as_list(finest)} - {None}
        return float(chosen_option(prediction, options) in own) or exact(prediction, finest)
    return _OF_ANSWERS[by](prediction, as_list(finest)) or exact(prediction, finest)


def score(prediction: str, answers: Sequence[str] | str, metric: str = "exact", *, votes: Sequence[str] = (),
          options: Sequence[str] = ()) -> float:  # fmt: skip
    """The score of a prediction by a metric's name, 0 to 1. Raises `MvlmError` for a metric that there is not."""
    reference = Reference(tuple(as_list(answers)), tuple(votes), tuple(options))
    return score_with(read_metric(metric), prediction, reference)


def fault(metric: Metric, reference: Reference) -> str | None:
    """Why no answer could be right by this metric, in words; None where one could."""
    match metric.name:
        case "agreement":
            return None
        case "vqa":
            return None if reference.votes else "vqa needs votes, what several people answered"
    if not reference.answers:
        return f"{metric.name} needs answers; without any, agreement with the finest scale is left"
    if metric.name == "choice":
        if len(reference.options) < 2:
            return "choice needs options"
        strange = [answer for answer in reference.answers if chosen_option(answer, reference.options) is None]
        return f"the answer {strange[0]!r} is none of the options" if strange else None
    if metric.name == "yes_no" and not any(map(verdict, reference.answers)):
        return f"yes_no needs an answer that begins with yes or no, and there is {reference.answers[0]!r}"
    if metric.name == "number" and all(read_number(answer) is None for answer in reference.answers):
        return f"number needs an answer that tells one, and there is {reference.answers[0]!r}"
    return None


def guess(references: Sequence[Reference]) -> Metric:
    """The metric of rows of one kind that name none, by what they hold: `exact` for short answers, `f1` for longer."""
    if all(reference.votes for reference in references):
        return Metric("vqa")
    if all(reference.options and fault(Metric("choice"), reference) is None for reference in references):
        return Metric("choice")
    answered = [reference.answers for reference in references if reference.answers]
    if not answered:
        return Metric("agreement")
    sentences = sum(all(map(is_sentence, answers)) for answers in answered)
    return Metric("f1" if sentences >= len(answered) - len(answered) // 2 else "exact")
