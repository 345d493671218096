"""The fields and options of Ollama's bodies: which are used, which ask for what happens anyway, which cannot be had.

As with OpenAI's: one that would change what the answer means is refused by name, all others are left out and listed.
"""

from __future__ import annotations

from typing import Any

from .answer_form import read_logprobs, read_ollama_form
from .body import BadField, short, switch
from .fields import LONGEST, OTHER_SAMPLERS, WINDOW, longest_of, require_as_it_is, window_of

_READ = (
    "model", "messages", "prompt", "system", "images", "stream", "options", "format", "logprobs", "top_logprobs",
    "truncate",
)  # fmt: skip
# What each may ask for, which is what happens anyway; the word says what the rest would change.
_FIELDS: dict[str, tuple[tuple[Any, ...], str]] = {
    "think": ((False,), "no model here thinks before it answers"),
    "raw": ((False,), "every prompt goes through the model's own template"),
    "template": (("",), "every prompt goes through the model's own template"),
    "suffix": (("",), "an answer is written behind its prompt alone"),
    "context": (([],), "send the conversation to /api/chat"),
}
_OPTIONS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "stop",
)  # fmt: skip


def read_ollama_options(value: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The runtime's options out of a body, and the names of the fields and options that were left out.

    Raises `MvlmError` naming one that cannot be had.
    """
    options, ignored = _options(value.get("options"))
    if (schema := read_ollama_form(value.get("format"))) is not None:
        options["json_schema"] = schema
    if (logprobs := read_logprobs(value)) is not None:
        options["logprobs"] = logprobs
    if switch(value, "truncate"):
        options["truncate"] = "oldest"
    for name, part in value.items():
        if part is None or name in _READ:
            continue
        if name in _FIELDS:
            require_as_it_is(name, part, _FIELDS)
        else:
            ignored.append(short(name).strip("'"))
    return options, ignored


def _options(value: object) -> tuple[dict[str, Any], list[str]]:
    if value is not None and not isinstance(value, dict):
        raise BadField(f"options is {short(value)}: send an object, or leave it out", "options")
    given = {name: part for name, part in (value or {}).items() if part is not None}
    options = {name: given.pop(name) for name in _OPTIONS if name in given}
    for name in [name for name in OTHER_SAMPLERS if name in given]:
        require_as_it_is(name, given.pop(name), OTHER_SAMPLERS)
    seed = given.pop("seed", None)
    if seed is not None and seed != -1:  # -1: another one each time
        options["seed"] = seed
    if "repeat_penalty" in given:
        options["repetition_penalty"] = given.pop("repeat_penalty")
        options["repetition_window"] = window_of(given.pop("repeat_last_n", WINDOW))
    longest = given.pop("num_predict", -1)
    longest = longest_of(-1 if longest == -2 else longest, "num_predict")  # -2: as much as the context holds
    ignored = [short(name).strip("'") for name in given]
    return options | ({} if longest is None else {LONGEST: longest}), ignored
