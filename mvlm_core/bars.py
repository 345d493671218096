"""Progress on the terminal, one bar at a time, each with the time left; a bare label where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
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
