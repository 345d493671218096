"""Progress on the terminal, one bar at a time, each with the time left; a bare label where there is no terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import click


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
        self._open.close()
        bar: Any = click.progressbar(length=length, label=f"{label:<28}", show_eta=True, show_percent=True, width=30)
        self._current = self._open.enter_context(bar)
        return bar.update

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
