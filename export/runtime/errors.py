"""The one class of errors of this project: what went wrong, where, and what to do, in one line.

It stands in the runtime because the runtime stands at the bottom of the house: everybody may import it.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence

# No word of a message is longer: a value that somebody sent may be.
_LONGEST_WORD, _KEPT = 500, 60


class MvlmError(Exception):
    """Something the caller can mend. The command line prints it without a traceback and exits with `exit_status`.

    `code` is a short, stable word for programs that embed the runtime; the message is for people.
    """

    exit_status = 2

    def __init__(self, message: str, *, code: str = "bad-input") -> None:
        super().__init__(re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", _shortened, message))
        self.code = code


class CheckFailed(MvlmError):
    """The input was in order, and a check of the result failed (a verification, a parity test)."""

    exit_status = 1

    def __init__(self, message: str, *, code: str = "check-failed") -> None:
        super().__init__(message, code=code)


def _shortened(word: re.Match[str]) -> str:
    return f"{word[0][:_KEPT]}... ({len(word[0])} characters)"


def shown(value: object) -> str:
    """A value for a message: on one line, and short, however much a caller sent."""
    try:
        text = reprlib.repr(value)
    except ValueError:  # a whole number with more digits than Python spells
        return "a number of very many digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def listed(faults: Sequence[str], most: int = 12) -> str:
    """Faults for a message, a line each; of very many the first."""
    more = [f"and {len(faults) - most} more"] if len(faults) > most else []
    return "".join(f"\n  {fault}" for fault in [*faults[:most], *more])
