"""What is asked, in one value: checked whole before any work is done."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from export.runtime.routing.router import Terms

from .errors import MvlmError, shown
from .views import scale as views_scale

Scale = int | str  # a number of visual tokens, a word such as 16@4, or auto
AUTO = "auto"
_MOST_CHOICES = 64
_COLDEST = 1e-6  # colder, logits that are divided by it leave float32
_MOST_STOPS = 16
_MOST_BIASES = 1024
_MOST_LOGPROBS = 20
_MOST_SCHEMA = 65_536  # characters
_ID = re.compile(r"0|[1-9][0-9]{0,8}")  # as JSON spells the id of a token


class Options(TypedDict, total=False):
    """What `ask`, `stream` and their like take beside question and scale; `Request` says what each means."""

    price: float | None
    budget: float | None
    within: float | None
    cap: float | None
    least_probability: float | None
    deadline_ms: float | None
    max_new_tokens: int
    stop: str | Sequence[str]
    choices: Sequence[str]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    repetition_window: int | None
    logit_bias: Mapping[int, float]
    seed: int | None
    json_schema: Mapping[str, Any] | None
    logprobs: int | None


@dataclass(frozen=True)
class Request:
    """A question and how to answer it.

    Attributes:
        scale: how many visual tokens to show, with tiles a word such as 16@4, or `auto`: the router chooses.
        price, budget, within, cap, least_probability: the terms of `auto`, as `router.Terms` says.
        deadline_ms: when the answer must stand, counted from the call. With `auto`, only scales that can answer by
            then are chosen from; decoding stops in time in any case.
        max_new_tokens: the longest answer.
        stop: texts that end the answer, and are no part of it.
        choices: the answers to choose from. The likeliest is the answer, and nothing is decoded.
        temperature: 0 takes the likeliest token; above 0 tokens are drawn.
        top_p: tokens are drawn from the likeliest that together have this probability.
        top_k: tokens are drawn from so many of the likeliest; 0 is all of them.
        min_p: tokens are drawn from those that have this share of the likeliest one's probability.
        presence_penalty, frequency_penalty: taken from the logit of a token that stands in the answer, once, and for
            each time that it does (-2 to 2, as OpenAI has them).
        repetition_penalty: divides the logit of a token that stands in the prompt or in the answer, and multiplies it
            where it is negative (above 0; 1 is none), as transformers and vLLM have it.
        repetition_window: at how many of the latest tokens of prompt and answer `repetition_penalty` looks, as
            llama.cpp and Ollama have it; None is all of them.
        logit_bias: added to the logits of tokens, by their ids (-100 to 100).
        seed: makes drawn answers repeatable.
        json_schema: what the answer must be JSON of, itself spelled in JSON; `request_of` takes it as a mapping.
        logprobs: how many of the likeliest tokens to name beside each token of the answer, up to 20; 0 names the token
            alone, None nothing.
    """

    question: str
    scale: Scale = "auto"
    price: float | None = None
    budget: float | None = None
    within: float | None = None
    cap: float | None = None
    least_probability: float | None = None
    deadline_ms: float | None = None
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    json_schema: str | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Raises `MvlmError` for everything that can be seen to be wrong without a bundle."""
        if not isinstance(self.question, str) or not self.question.strip():
            raise MvlmError("the question is empty: ask something", code="empty-question")
        for text in (self.question, *self.stop, *self.choices):
            _require_whole(text)
        if not (self.scale == AUTO or _is_whole(self.scale) or _is_word(self.scale)):
            raise MvlmError(
                f"there is no scale {shown(self.scale)}: name a number of visual tokens, with tiles a word such as"
                " 16@4, or auto",
                code="bad-scale",
            )
        for field in fields(Terms):
            value = getattr(self, field.name)
            if value is not None and not _within(value, 0, math.inf):
                named = field.name.replace("_", " ")
                raise MvlmError(f"the {named} is {shown(value)}: give a number from 0 up", code="bad-price")
        _ = self.terms
        if self.deadline_ms is not None and not (_within(self.deadline_ms, 0, math.inf) and self.deadline_ms > 0):
            raise MvlmError(f"the deadline is {shown(self.deadline_ms)} ms: give a number above 0", code="bad-option")
        if not _is_whole(self.max_new_tokens) or self.max_new_tokens < 1:
            raise MvlmError(
                f"an answer of at most {shown(self.max_new_tokens)} tokens is none: allow at least 1", code="bad-option"
            )
        if not _within(self.temperature, 0, math.inf):
            raise MvlmError(f"the temperature is {shown(self.temperature)}: give a number from 0 up", code="bad-option")
        if not (_within(self.top_p, 0, 1) and self.top_p > 0):
            raise MvlmError(f"top_p is {shown(self.top_p)}: give a number above 0, at most 1", code="bad-option")
        if not _is_whole(self.top_k) or self.top_k < -1:
            raise MvlmError(
                f"top_k is {shown(self.top_k)}: give a whole number from 1 up, or 0 for all", code="bad-option"
            )
        if not _within(self.min_p, 0, 1):
            raise MvlmError(f"min_p is {shown(self.min_p)}: give a number from 0 to 1", code="bad-option")
        for name in ("presence_penalty", "frequency_penalty"):
            if not _within(getattr(self, name), -2, 2):
                raise MvlmError(
                    f"{name} is {shown(getattr(self, name))}: give a number from -2 to 2", code="bad-option"
                )
        if not (_within(self.repetition_penalty, 0, math.inf) and self.repetition_penalty > 0):
            raise MvlmError(
                f"repetition_penalty is {shown(self.repetition_penalty)}: give a number above 0", code="bad-option"
            )
        window = self.repetition_window
        if window is not None and not (_is_whole(window) and window >= 0):
            raise MvlmError(
                f"repetition_window is {shown(window)}: give a whole number from 0 up, or leave it out",
                code="bad-option",
            )
        if any(not (_is_whole(token) and token >= 0 and _within(bias, -100, 100)) for token, bias in self.logit_bias):
            raise MvlmError("logit_bias holds something else than ids and numbers from -100 to 100", code="bad-option")
        if self.seed is not None and not (_is_whole(self.seed) and self.seed >= 0):
            raise MvlmError(f"the seed is {shown(self.seed)}: give a whole number from 0 up", code="bad-option")
        if self.logprobs is not None and not (_is_whole(self.logprobs) and 0 <= self.logprobs <= _MOST_LOGPROBS):
            raise MvlmError(
                f"logprobs is {self.logprobs!r}: give a whole number from 0 to {_MOST_LOGPROBS}", code="bad-option"
            )
        if self.choices and (self.json_schema is not None or self.logprobs is not None):
            raise MvlmError("choices are scored whole: leave out json_schema and logprobs", code="bad-option")
        _require_texts(self.stop, "stop", _MOST_STOPS)
        _require_texts(self.choices, "choices", _MOST_CHOICES)
        if any(not choice.strip() for choice in self.choices):
            raise MvlmError("choices holds an answer that is only white space: give words", code="bad-option")
        if self.choices and len({choice.strip() for choice in self.choices}) < max(2, len(self.choices)):
            raise MvlmError("the choices are not different answers, two or more: give those", code="bad-option")

    @property
    def terms(self) -> Terms:
        return Terms(self.price, self.budget, self.within, self.cap, self.least_probability)

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn. Under the coldest temperature the likeliest always is, whatever the logits."""
        return self.temperature >= _COLDEST


def request_of(question: str, scale: Scale, options: Mapping[str, Any]) -> Request:
    """A request from what a caller named. Raises `MvlmError`, for an option that does not exist too."""
    known = [field.name for field in fields(Request)][2:]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise MvlmError(f"there is no option {shown(name)}: {hint}", code="bad-option")
    named = {name: _plain(value) for name, value in options.items()}
    scale = scale_word(_plain(scale))
    named["json_schema"] = _schema(named.get("json_schema"))
    named["logit_bias"] = _biases({} if named.get("logit_bias") is None else named["logit_bias"])
    for name in ("stop", "choices"):
        value = named.get(name) or ()
        named[name] = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else (value,)
    return Request(question, scale, **named)


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    """Biases by id; JSON spells the ids as texts."""
    if not isinstance(value, Mapping) or len(value) > _MOST_BIASES:
        raise MvlmError(f"logit_bias is no mapping of at most {_MOST_BIASES} ids to numbers", code="bad-option")
    ids = (int(token) if isinstance(token, str) and _ID.fullmatch(token) else token for token in value)
    biases = tuple(zip(ids, value.values(), strict=True))
    if len({token for token, _ in biases}) < len(biases):
        raise MvlmError("logit_bias names a token twice: give each id once", code="bad-option")
    return biases


def _schema(value: object) -> str | None:
    """A JSON schema, spelled."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise MvlmError(f"json_schema is {str(value)[:60]!r}: give a mapping", code="bad-option")
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise MvlmError(f"json_schema is no JSON ({error})", code="bad-option") from None
    if len(text) > _MOST_SCHEMA:
        raise MvlmError(f"json_schema has {len(text)} characters: give at most {_MOST_SCHEMA}", code="bad-option")
    return text


def _plain(value: Any) -> Any:
    """A number of numpy as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _require_whole(text: object) -> None:
    """Raise `MvlmError` for half a character (a lone surrogate), which no tokenizer takes."""
    try:
        str(text).encode()
    except UnicodeEncodeError:
        raise MvlmError(f"the text {text!r:.60} holds half a character: write it whole", code="bad-option") from None


def require_several(value: object, what: str) -> None:
    """Raise `MvlmError` for one text where several are asked for: its letters would be taken for them."""
    if isinstance(value, str | bytes | Path):
        raise MvlmError(f"ask_many takes a list of {what}, and this is one: put it into a list", code="bad-option")


def _require_texts(texts: tuple[Any, ...], name: str, most: int) -> None:
    if len(texts) > most:
        raise MvlmError(f"{name} holds {len(texts)} texts: give at most {most}", code="bad-option")
    if not all(isinstance(text, str) and text for text in texts):
        raise MvlmError(f"{name} holds something that is no text: give texts that are not empty", code="bad-option")


def scale_word(value: Any) -> Any:
    """A scale as bundles write it, `36` as a number; what is none stays as it is."""
    if not isinstance(value, str) or value == AUTO:
        return value
    try:
        return views_scale.Scale.parse(value).word
    except MvlmError:
        return value


def _is_word(value: object) -> bool:
    return isinstance(value, str) and views_scale.is_word(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _within(value: object, low: float, high: float) -> bool:
    """Whether it is a finite number from `low` to `high`."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) and low <= value <= high
    except OverflowError:  # a whole number beyond a double
        return False
