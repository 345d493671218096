"""What a server writes down: a JSON line a request, without what was asked, and the traceback of its own faults."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.runtime.answer import Answer

from .prometheus import Metrics


class Journal:
    """Counts requests, and writes their lines to the log, if there is one. Without one, faults reach stderr."""

    def __init__(self, log: Path | None, metrics: Metrics) -> None:
        self._log, self._metrics = log, metrics
        self._lost = False

    def note(self, path: str, started: float, answers: Sequence[Answer] = (), *, code: str | None = None) -> None:
        """A request has ended: with answers, or with the code of an error. `started` is of `time.perf_counter`."""
        seconds = time.perf_counter() - started
        if answers:
            self._metrics.answered(answers, seconds)
        elif code:
            self._metrics.refused(code)
        scale = answers[0].num_visual_tokens if answers else None
        self._write({"path": path, "ms": round(1000 * seconds, 1), "scale": scale, "code": code})

    def first_token(self, seconds: float) -> None:
        self._metrics.first_token.observe(seconds)

    def next_token(self, seconds: float) -> None:
        self._metrics.next_token.observe(seconds)

    def fault(self, error: BaseException) -> None:
        """A fault of ours, with its traceback."""
        trace = "".join(traceback.format_exception(error))
        self._metrics.faults.inc()
        if self._log is None or not self._write({"code": "internal", "traceback": trace}):
            print(trace, file=sys.stderr, end="")

    def _write(self, line: dict[str, Any]) -> bool:
        if self._log is None:
            return False
        try:
            with self._log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps({"time": round(time.time(), 3)} | line) + "\n")
        except OSError as error:  # a full disk is no reason not to answer
            if not self._lost:
                print(f"the log {self._log} cannot be written ({error.strerror}); serving on", file=sys.stderr)
            self._lost = True
            self._metrics.log_lines_lost.inc()
            return False
        return True
