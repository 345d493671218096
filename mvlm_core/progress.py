"""Progress on the terminal, one bar at a time, each with the time left; a bare label where there is no terminal."""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import click

# How wide a bar is that leaves room, and what stands beside it: label, brackets, per cent and time left.
_NARROW = 12
_BESIDE_A_NARROW_BAR = 28 + 2 + _NARROW + 2 + 6 + 14


class Bars:
    """Use as a context: the open bar is finished when the next one starts, and at the end."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._current: Any = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def start(self, label: str, length: int) -> Callable[[int], None]:
        """Open a bar and return what advances it."""
        return self._show(label, length, width=30).update

    def start_told(self, label: str, length: int) -> Callable[[str], None]:
        """Open a bar with room behind it, and return what advances it by one and says what that came to."""
        room = max(0, shutil.get_terminal_size().columns - _BESIDE_A_NARROW_BAR)
        bar = self._show(label, length, width=_NARROW, item_show_func=lambda told: (told or "")[:room])
        return lambda told: bar.update(1, told)

    def say(self, line: str) -> None:
        """A line above the open bar, which is drawn again when it moves."""
        if self._current is not None and sys.stdout.isatty():
            click.echo("\r\x1b[2K", nl=False, color=True)
        click.echo(line)

    def _show(self, label: str, length: int, **look: Any) -> Any:
        self._open.close()
        bar: Any = click.progressbar(length=length, label=f"{label:<28}", show_eta=True, show_percent=True, **look)
        self._current = self._open.enter_context(bar)
        return self._current

    def reach(self, label: str) -> Callable[[int, int], None]:
        """What to call with (done, all): the bar opens at the first call, at a length known only then."""
        reached = 0

        def progress(done: int, whole: int) -> None:
            nonlocal reached
            if reached == 0:
                self.start(label, whole)
            self._current.update(done - reached)
            reached = done

        return progress


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own bars off the terminal: ours are there. Import them inside, too.

    peft imports bitsandbytes wherever it is installed, which then tells of a CPU kernel that it lacks, whether four
    bits were asked for or not; and peft itself asks transformers by a name that is to go.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            yield
    finally:
        transformers_logging.enable_progress_bar()
