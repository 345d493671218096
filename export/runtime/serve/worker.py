"""One thread that asks the model, and a queue of bounded length before it."""

from __future__ import annotations

import asyncio
import hashlib
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from export.runtime.answer import Answer
from export.runtime.engine import Runtime
from export.runtime.errors import MvlmError
from export.runtime.image import open_picture
from export.runtime.view import View

_VIEWS_KEPT = 4
Event = str | Answer | dict[str, Any] | MvlmError


class Job:
    """Something to ask, and where its events go: pieces of text, then what it comes to, or an error.

    `work` runs in the worker's thread, gives its pieces to `self.put` and looks at `self.stopped` between them.
    """

    def __init__(self, work: Callable[[Job], Event]) -> None:
        self.work = work
        self.stopped = False
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
        self.stopped = True


class Worker:
    """Runs jobs one after another. At most `waiting` of them wait; one more is refused."""

    def __init__(self, runtime: Runtime, waiting: int, pixels: int) -> None:
        self.runtime = runtime
        self._pixels = pixels
        self._jobs: queue.Queue[Job | None] = queue.Queue(waiting)
        self._views: OrderedDict[bytes, View] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="mvlm worker", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Raises `MvlmError` with the code `busy` when too many wait already."""
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise MvlmError(f"{self._jobs.maxsize} questions wait already: ask again later", code="busy") from None

    @property
    def waiting(self) -> int:
        return self._jobs.qsize()

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

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
            try:
                job.put(job.work(job))
            except MvlmError as error:
                job.put(error)
            except Exception as error:  # a fault of ours must not end the thread that everybody waits for
                job.put(MvlmError(f"the server has a fault ({type(error).__name__})", code="internal"))
