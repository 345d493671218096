"""A chat template comes with a model, and is a program: it is given a sandbox by transformers, and an end here."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from export.runtime.errors import MvlmError

_MOST_SECONDS = 10.0


class _TimeIsUp(Exception):
    pass


@contextmanager
def template_errors(most_seconds: float = _MOST_SECONDS) -> Iterator[None]:
    """Whatever a chat template stumbles over, and one that does not end, as one line.

    The end is kept where signals can be: in a main thread, on a system that has them.
    """
    try:
        with _alarm(most_seconds):
            yield
    except MvlmError:
        raise
    except _TimeIsUp:
        raise MvlmError(f"the chat template does not end within {most_seconds:g} s: use another") from None
    except Exception as error:  # of Jinja, of the sandbox, and of whatever the template computes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MvlmError(f"the chat template refuses this conversation: {reason}") from None


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
