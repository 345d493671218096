"""The one class of errors of this project: what went wrong, where, and what to do, in one line.

It stands in the runtime because the runtime stands at the bottom of the house: everybody may import it.
"""


class MvlmError(Exception):
    """Something the caller can mend. The command line prints it without a traceback and exits with `exit_status`.

    `code` is a short, stable word for programs that embed the runtime; the message is for people.
    """

    exit_status = 2

    def __init__(self, message: str, *, code: str = "bad-input") -> None:
        super().__init__(message)
        self.code = code


class CheckFailed(MvlmError):
    """The input was in order, and a check of the result failed (a verification, a parity test)."""

    exit_status = 1

    def __init__(self, message: str, *, code: str = "check-failed") -> None:
        super().__init__(message, code=code)
