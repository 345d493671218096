"""What stands in a row where a text should: a number is its text, and everything else is a fault. No torch."""

from __future__ import annotations

import json
import math
import reprlib
from decimal import Decimal
from numbers import Integral
from typing import Any

from export.runtime.errors import MvlmError


class _AsWritten(float):
    """A number of a JSON file that keeps how it is written there: 4.50 stays 4.50, for it is an answer to learn."""

    text: str

    def __new__(cls, text: str) -> _AsWritten:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


def read_json(text: str | bytes) -> Any:
    """A JSON value of a data file, a byte order mark before it or not.

    Raises `MvlmError`: not UTF-8, not JSON, or nested deeper than can be read.
    """
    try:
        told = text if isinstance(text, str) else text.decode("utf-8-sig")
        return json.loads(told, parse_float=_AsWritten)
    except UnicodeDecodeError as error:
        raise MvlmError(f"not UTF-8 ({error}): save the file as UTF-8") from None
    except ValueError as error:
        raise MvlmError(f"not valid JSON ({error})") from None
    except RecursionError:
        raise MvlmError("not valid JSON (nested too deep)") from None


def text_of(value: Any, what: str) -> str:
    """A text, or a number as text. Raises `MvlmError` that says `what` is neither, or holds half a character."""
    if not isinstance(value, str) and not _is_number(value):
        raise MvlmError(f"{what} is {shown(value)}, which is neither text nor a number")
    text = str(value)
    require_whole(text, what)
    return text


def _is_number(value: Any) -> bool:
    if isinstance(value, float | Decimal):
        return math.isfinite(value)
    return isinstance(value, Integral) and not isinstance(value, bool)


def require_whole(text: str, what: str) -> None:
    """Raise `MvlmError` for half a character (a lone surrogate), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise MvlmError(f"{what} holds half a character ({half!a}, a lone surrogate): write it whole") from None


def shown(value: Any) -> str:
    """A value for a message: on one line, and short, whatever it is."""
    return "null" if value is None else reprlib.repr(value)
