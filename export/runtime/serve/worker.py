"""One thread that asks the model, and a queue of bounded length before it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from export.runtime.answer import Answer
from export.runtime.engine import Runtime
from export.runtime.errors import MvlmError
from export.runtime.image import open_picture
from export.runtime.view import View

_VIEWS_KEPT = 16
_CLOSING_S = 10.0
Event = str | Answer | dict[str, Any] | MvlmError


class Job:
    """Something to ask, and where its events go: pieces of text, then what it comes to, or an error.

    `work` runs in the worker's thread, gives its pieces to `self.put` and looks at `self.stopped` between them.
    """

    def __init__(self, work: Callable[[Job], Event]) -> None:
        self.work = work
        self.stopped = False
        self.stopped_at = float("inf")
        self.on_stop: Callable[[], None] = lambda: None  # set by work that can be ended between its pieces
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.stopped = True

    async def next(self) -> Event:
        return await self._events.get()

    def stop(self) -> None:
        """Nobody waits any more: what it holds of a request is let go of, unless it runs at this moment."""
        self.stopped = True
        self.stopped_at = min(self.stopped_at, time.monotonic())
        self.work = _nothing
        self.on_stop()


class Worker:
    """Runs jobs one after another. At most `waiting` of them wait; one more is refused."""

    def __init__(self, runtime: Runtime, waiting: int, pixels: int, fault: Callable[[BaseException], None]) -> None:
        """`fault` is told of whatever a job raises that is no `MvlmError`."""
        self.runtime = runtime
        self._pixels = pixels
        self._fault = fault
        self._jobs: queue.Queue[Job | None] = queue.Queue(waiting)
        self._views: OrderedDict[bytes, View] = OrderedDict()
        self._running: Job | None = None
        self._thread = threading.Thread(target=self._run, name="mvlm worker", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Raises `MvlmError` with the code `busy` when too many wait already."""
        self.require_room()
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise self._busy() from None

    def require_room(self) -> None:
        """Raise `MvlmError` with the code `busy` when no more may wait, so that nothing is read for nothing."""
        if self._jobs.full():
            raise self._busy()

    def _busy(self) -> MvlmError:
        return MvlmError(f"{self._jobs.maxsize} questions wait already: ask again later", code="busy")

    @property
    def waiting(self) -> int:
        return self._jobs.qsize()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def overdue_s(self) -> float:
        """For how long a job has been running on after it was told to stop."""
        running = self._running
        return max(0.0, time.monotonic() - running.stopped_at) if running else 0.0

    def close(self) -> None:
        """End after the jobs that wait; what does not end even when told to is left to the end of the process."""
        with contextlib.suppress(queue.Full):
            self._jobs.put(None, timeout=_CLOSING_S)
        if running := self._running:
            running.stop()
        self._thread.join(_CLOSING_S)

    def look(self, picture: bytes) -> View:
        """A view of a picture. Those of the latest few are kept, so that asking again starts at the question."""
        key = hashlib.sha256(picture).digest()
        kept = self._views.pop(key, None)
        view = kept or self.runtime.look(open_picture(picture, most_pixels=self._pixels))
        self._views[key] = replace(view, timings={})  # looking at it was paid for by the first question
        while len(self._views) > _VIEWS_KEPT:
            self._views.popitem(last=False)
        return view

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.stopped:
                continue
            self._running = job
            try:
                job.put(job.work(job))
            except MvlmError as error:
                job.put(error)
            except BaseException as error:  # a panic of the tokenizer too: all wait for this thread
                self._fault(error)
                job.put(internal(error))
            finally:
                self._running = None


def _nothing(job: Job) -> Event:
    return MvlmError("the caller has gone", code="closed")


def internal(error: BaseException) -> MvlmError:
    """What a caller is told of a fault of ours."""
    return MvlmError(f"the server has a fault ({type(error).__name__}): its log says more", code="internal")
