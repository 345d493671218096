"""A body as values: strict JSON, and what to say of the parts that cannot be had."""

from __future__ import annotations

import json
import math
from typing import Any

from export.runtime.errors import MvlmError

_MOST_DIGITS = 1000  # of a whole number: more than any that means something


class BadField(MvlmError):
    """A field of a body that cannot be had; `param` is its name, as OpenAI's errors have it."""

    def __init__(self, message: str, param: str, *, code: str = "bad-option") -> None:
        super().__init__(message, code=code)
        self.param = param


def read_json(body: bytes | bytearray) -> dict[str, Any]:
    """A JSON object. Raises `MvlmError` for anything else, nested however deep, and for numbers beyond a double."""
    try:
        value = json.loads(body, parse_constant=_no_constant, parse_float=_number, parse_int=_whole,
                           object_pairs_hook=_object)  # fmt: skip
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:120]
        raise MvlmError(f"the body is not valid JSON ({reason})", code="bad-body") from None
    if not isinstance(value, dict):
        raise MvlmError("the body is not a JSON object", code="bad-body")
    return value


def switch(value: dict[str, Any], name: str, of: str = "") -> bool:
    """A field that is true or false; left out, it is false. Raises `BadField` for anything else."""
    part = value.get(name)
    if part is None or isinstance(part, bool):
        return bool(part)
    raise BadField(f"{of}{name} is {short(part)}: send true or false", f"{of}{name}")


def require_text(text: str, what: str) -> str:
    """Raise `MvlmError` for half a character, which JSON's escapes can spell and nothing can encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MvlmError(f"{what} holds half a character: send whole ones", code="bad-body") from None
    return text


def short(value: object) -> str:
    """A value in a message: one line, and not much of it."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (ValueError, RecursionError):
        text = "something"
    text = text[:61].encode(errors="replace").decode()
    return repr(text[:60] + ("…" if len(text) > 60 else ""))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"the number {text[:20]}... has {len(text)} digits")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are all different: of two values under one name, none is better than the other."""
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it names {short(twice)} twice")
    return value


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number
