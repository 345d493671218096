"""The fields of OpenAI's chat completions: which are used, which ask for what happens anyway, which cannot be had.

A field that would change what the answer means is refused by name. One that changes nothing essential, and that is not
known here, is left out and listed in the answer under `mvlm.ignored`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.runtime.request import scale_word
from export.runtime.views.scale import is_word

from .answer_form import read_form, read_logprobs
from .body import BadField, short

OURS = ("scale", "price", "budget", "within", "cap", "least_probability", "deadline_ms", "choices", "truncate")
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "seed", "stop",
)  # fmt: skip
_READ_ELSEWHERE = (
    "model", "messages", "stream", "stream_options", "mvlm", "max_tokens", "max_completion_tokens", "n",
    "response_format", "logprobs", "top_logprobs", "repeat_penalty",
)  # fmt: skip
# For the caller's own books: nothing of an answer depends on them.
_BOOKS = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
)  # fmt: skip
# What each may ask for, which is what happens anyway; the word says what the rest would change.
_AS_IT_IS: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1,), "every answer is given"),
    "modalities": ((["text"],), "an answer is plain text"),
    "audio": ((), "an answer is plain text"),
    "tool_choice": (("none", "auto"), "no tool is called"),
    "functions": (([],), "no tool is called"),
    "function_call": (("none", "auto"), "no tool is called"),
}
_SEARCH = "nothing is looked up"
_FORM = "an answer is held to a form by response_format"
_PROMPT = "every prompt goes through the model's own template, and an answer stands behind it"
_END = "an answer ends where the model ends it"
# What llama.cpp's and vLLM's servers take besides, and what changes an answer here or there.
_OTHERS: dict[str, tuple[tuple[Any, ...], str]] = {
    "guided_json": ((), _FORM), "guided_choice": ((), f"{_FORM}, or to choices by mvlm.choices"),
    "guided_regex": ((), _FORM), "guided_grammar": ((), _FORM), "structured_outputs": ((), _FORM),
    "grammar": (("",), _FORM), "json_schema": ((), _FORM),
    "chat_template": ((), _PROMPT), "echo": ((False,), _PROMPT), "suffix": (("",), _PROMPT),
    "continue_final_message": ((False,), _PROMPT), "add_generation_prompt": ((True,), _PROMPT),
    "ignore_eos": ((False,), _END), "min_tokens": ((0,), _END), "stop_token_ids": (([],), f"{_END}, or by stop"),
    "use_beam_search": ((False,), "tokens are taken one by one"),
    "web_search_options": ((), _SEARCH), "prompt": ((), "no prompt is kept: send messages"),
}  # fmt: skip
# Ways of drawing tokens that are not known here, and the values at which they do nothing.
OTHER_SAMPLERS: dict[str, tuple[tuple[Any, ...], str]] = {
    name: (off, "tokens are drawn by top_p, top_k and min_p")
    for name, off in {
        "typical_p": (1,), "tfs_z": (1,), "mirostat": (0,), "xtc_probability": (0,), "dry_multiplier": (0,),
        "top_n_sigma": (-1, 0), "dynatemp_range": (0,), "length_penalty": (1,),
    }.items()
}  # fmt: skip
LONGEST = "max_new_tokens"
WINDOW = 64  # tokens that llama.cpp and Ollama look back at, where a body names no other number
_MOST_ANSWERS = 8


def read_options(value: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The runtime's options out of a body, and the names of the fields that were left out.

    Raises `MvlmError` naming a field that cannot be had.
    """
    options = _ours(value.get("mvlm")) | _repeat_penalty(value)
    ignored = []
    known = _AS_IT_IS | _OTHERS | OTHER_SAMPLERS
    for name, part in value.items():
        if part is None or name in _READ_ELSEWHERE or name in _BOOKS:
            continue
        if name == "repeat_last_n" and "repetition_window" in options:
            continue
        if name in _SAMPLING:
            options[name] = part
        elif name in known:
            require_as_it_is(name, part, known)
        elif not (name == "tools" and part == []):  # with tool_choice "auto" the model may do without them, and does
            ignored.append(name if name.isprintable() and len(name) <= 60 else short(name))
    found = {
        LONGEST: _longest(value), "json_schema": read_form(value.get("response_format"), "response_format"),
        "logprobs": read_logprobs(value),
    }  # fmt: skip
    return options | {name: part for name, part in found.items() if part is not None}, sorted(ignored)


def _ours(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not set(value) <= set(OURS):
        raise BadField(f"mvlm takes {', '.join(sorted(OURS))}, and holds {short(value)}", "mvlm")
    return {name: part for name, part in value.items() if part is not None}


def _repeat_penalty(value: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp's name for `repetition_penalty`, and at how many tokens it looks. Raises `BadField` for both names."""
    penalty = value.get("repeat_penalty")
    if penalty is None:
        return {}
    if value.get("repetition_penalty") is not None:
        raise BadField("repeat_penalty and repetition_penalty are one thing: name one of them", "repeat_penalty")
    last = value.get("repeat_last_n")
    return {"repetition_penalty": penalty, "repetition_window": window_of(WINDOW if last is None else last)}


def window_of(last: object) -> object:
    """At how many of the latest tokens a penalty looks; llama.cpp's -1, all of them, is None here."""
    if isinstance(last, bool) or not isinstance(last, int) or last < -1:
        raise BadField(f"repeat_last_n is {short(last)}: give a whole number, or -1 for all tokens", "repeat_last_n")
    return None if last == -1 else last


def require_as_it_is(name: str, part: object, known: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
    """Raise `BadField` where a field asks for something else than what happens anyway."""
    allowed, why = known[name]
    if not any(part == known and isinstance(part, bool) == isinstance(known, bool) for known in allowed):
        raise BadField(f"{name} {short(part)} is not offered here ({why}): leave it out", name, code="unsupported")


def _longest(value: dict[str, Any]) -> int | None:
    """The longest answer that is asked for; None where that is all the room there is."""
    named = {name: value[name] for name in ("max_tokens", "max_completion_tokens") if value.get(name) is not None}
    if len(set(map(repr, named.values()))) > 1:
        raise BadField("max_tokens and max_completion_tokens differ: name one of them", "max_tokens", code="bad-option")
    for name, part in named.items():
        return longest_of(part, name)
    return None


def longest_of(part: object, name: str) -> int | None:
    """The longest answer; None for -1, which is llama.cpp's way to say that it may use all the room there is."""
    if not isinstance(part, int) or isinstance(part, bool) or (part < 1 and part != -1):
        raise BadField(f"{name} is {short(part)}: give a whole number from 1 up", name)
    return None if part == -1 else part


def answer_count(value: dict[str, Any]) -> int:
    """How many answers are asked for. Raises `BadField`."""
    part = value.get("n")
    count = 1 if part is None else part
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= _MOST_ANSWERS:
        raise BadField(f"n is {short(part)}: ask for 1 to {_MOST_ANSWERS} answers", "n")
    return count


def scale_of(models: Mapping[str, Any], model: object, named: object) -> Any:
    """The scale that a model's name stands for, or that the body names beside it. Raises `MvlmError`."""
    if not isinstance(model, str) or model not in models:
        raise BadField(
            f"there is no model {short(model)}: name one of {', '.join(models)}", "model", code="model_not_found"
        )
    of_model = models[model]
    if named in (None, "auto"):
        return of_model
    scale = scale_word(named)
    spelled = scale if isinstance(scale, int) else isinstance(scale, str) and is_word(scale)
    if isinstance(scale, bool) or not spelled or of_model not in ("auto", scale):
        raise BadField(
            f"the model is {model}, and mvlm.scale is {short(named)}: name one scale", "mvlm", code="bad-scale"
        )
    return scale
