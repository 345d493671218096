"""Who asks the model: a queue of bounded length, a thread that prepares what is asked, and one that writes answers.

Pictures are looked at and scales chosen beside the writing; answers are written together (`decode.desk`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from export.runtime.answer import Answer, Stop
from export.runtime.decode.desk import Desk
from export.runtime.decode.steps import Piece, Steps
from export.runtime.engine import Runtime
from export.runtime.errors import MvlmError
from export.runtime.view import View

from .limits import Limits

_VIEWS_KEPT = 16
_CLOSING_S = 10.0


@dataclass(frozen=True)
class Begun:
    """Answers that are to be written, and what stops all of them."""

    steps: tuple[Steps, ...]
    stop: Stop


@dataclass(frozen=True)
class Part:
    """A piece of one of the answers."""

    index: int
    piece: Piece


Event = Part | list[Answer] | dict[str, Any] | MvlmError


class Job:
    """Something to ask, and where its events go: parts of texts, then what it comes to, or an error.

    `work` runs in the preparing thread. It comes to an event, or to answers that are written from then on.
    """

    def __init__(self, work: Callable[[Job], Event | Begun]) -> None:
        self.work = work
        self.stopped = False
        self.stopped_at = float("inf")
        self.began_at = time.monotonic()
        self.on_stop: Callable[[], None] = lambda: None  # set by work that can be ended between its pieces
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.stopped = True

    def ready(self) -> Event | None:
        """An event that has come already."""
        return None if self._events.empty() else self._events.get_nowait()

    async def next(self) -> Event:
        return await self._events.get()

    def stop(self) -> None:
        """Nobody waits any more: what it holds of a request is let go of, unless it runs at this moment."""
        self.stopped = True
        self.stopped_at = min(self.stopped_at, time.monotonic())
        self.work = _nothing
        self.on_stop()


class Watch(Protocol):
    """Who is told how quickly tokens come, and of faults that are no `MvlmError`."""

    def first_token(self, seconds: float) -> None: ...

    def next_token(self, seconds: float) -> None: ...

    def fault(self, error: BaseException) -> None: ...


class Worker:
    """Runs jobs. At most `limits.queue` of them wait; one more is refused."""

    def __init__(self, runtime: Runtime, limits: Limits, watch: Watch) -> None:
        self.runtime, self.watch = runtime, watch
        self._pixels = limits.pixels
        self._jobs: queue.Queue[Job | None] = queue.Queue(limits.queue)
        most = limits.together if runtime.decoder.takes_several else 1
        self._seats = threading.Semaphore(most)
        self._desk = Desk(runtime.decoder, runtime.table.rows, most, limits.stall_ms)
        self._begun: queue.SimpleQueue[tuple[Job, Begun] | None] = queue.SimpleQueue()
        self._views: OrderedDict[bytes, View] = OrderedDict()
        self._running: set[Job] = set()
        self._threads = [
            threading.Thread(target=target, name=f"mvlm {name}", daemon=True)
            for name, target in (("preparer", self._prepare), ("worker", self._write))
        ]
        for thread in self._threads:
            thread.start()

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
        return all(thread.is_alive() for thread in self._threads)

    @property
    def overdue_s(self) -> float:
        """For how long a job has been running on after it was told to stop."""
        now = time.monotonic()
        return max((max(0.0, now - job.stopped_at) for job in list(self._running)), default=0.0)

    def close(self) -> None:
        """End after the jobs that wait; what does not end even when told to is left to the end of the process."""
        with contextlib.suppress(queue.Full):
            self._jobs.put(None, timeout=_CLOSING_S)
        for job in list(self._running):
            job.stop()
        for thread in self._threads:
            thread.join(_CLOSING_S)

    def look(self, picture: bytes) -> View:
        """A view of a picture. Those of the latest few are kept, so that asking again starts at the question."""
        key = hashlib.sha256(picture).digest()
        kept = self._views.pop(key, None)
        view = kept or self.runtime.look(picture, most_pixels=self._pixels)
        self._views[key] = replace(view, timings={})  # looking at it was paid for by the first question
        while len(self._views) > _VIEWS_KEPT:
            self._views.popitem(last=False)
        return view

    def failure(self, error: BaseException) -> MvlmError:
        """What a caller is told of an error; a fault of ours is kept in the log."""
        if isinstance(error, MvlmError):
            return error
        self.watch.fault(error)
        return internal(error)

    def ended(self, job: Job) -> None:
        """A job has run: there is a place for the next."""
        self._running.discard(job)
        self._seats.release()

    # The threads

    def _prepare(self) -> None:
        """Take jobs in the order in which they came, as soon as there is a place for one more."""
        while True:
            self._seats.acquire()
            job = self._jobs.get()
            if job is None:
                self._begun.put(None)
                return
            if job.stopped:
                self._seats.release()
                continue
            self._running.add(job)
            begun = self._begin(job)
            if begun:
                self._begun.put((job, begun))
            else:
                self.ended(job)

    def _begin(self, job: Job) -> Begun | None:
        try:
            event = job.work(job)
        except BaseException as error:  # a panic of the tokenizer too: all wait for this thread
            event = self.failure(error)
        if isinstance(event, Begun):
            return event
        job.put(event)
        return None

    def _write(self) -> None:
        ending = False
        while not (ending and not len(self._desk)):
            for item in self._arrived():
                if item is None:
                    ending = True
                else:
                    self._sit(*item)
            try:
                self._desk.turn()
            except BaseException as error:  # all wait for this thread
                self.watch.fault(error)

    def _arrived(self) -> list[tuple[Job, Begun] | None]:
        """What is new; if nobody writes, it is waited for."""
        found = [] if len(self._desk) else [self._begun.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._begun.get_nowait())
        return found

    def _sit(self, job: Job, begun: Begun) -> None:
        def stop() -> None:
            begun.stop.now = True

        job.on_stop = stop
        if job.stopped:  # before anybody could tell it
            stop()
        answers = _Answers(self, job, len(begun.steps))
        for index, steps in enumerate(begun.steps):
            self._desk.sit(steps, _Place(answers, index))


class _Answers:
    """What the answers of one job have come to so far."""

    def __init__(self, worker: Worker, job: Job, count: int) -> None:
        self.worker, self.job = worker, job
        self._left = count
        self._whole: dict[int, Answer] = {}
        self._error: BaseException | None = None

    def one(self, index: int, answer: Answer | BaseException) -> None:
        """One of them has ended; with the last, the job has."""
        self._left -= 1
        if isinstance(answer, Answer):
            self._whole[index] = answer
        elif self._error is None:
            self._error = answer
            self.job.on_stop()  # the others are of no use alone
        if self._left:
            return
        whole = [self._whole[at] for at in sorted(self._whole)]
        self.job.put(whole if self._error is None else self.worker.failure(self._error))
        self.worker.ended(self.job)


class _Place:
    """Hears of one answer at the desk."""

    def __init__(self, answers: _Answers, index: int) -> None:
        self._answers, self._index = answers, index
        self._last: float | None = None

    @property
    def stopped(self) -> bool:
        return self._answers.job.stopped

    def put(self, piece: Piece) -> None:
        self._answers.job.put(Part(self._index, piece))

    def token(self) -> None:
        now, watch = time.monotonic(), self._answers.worker.watch
        if self._last is None:
            watch.first_token(now - self._answers.job.began_at)
        else:
            watch.next_token(now - self._last)
        self._last = now

    def ended(self, answer: Answer) -> None:
        self._answers.one(self._index, answer)

    def failed(self, error: BaseException) -> None:
        self._answers.one(self._index, error)


def _nothing(job: Job) -> Event:
    return MvlmError("the caller has gone", code="closed")


def internal(error: BaseException) -> MvlmError:
    """What a caller is told of a fault of ours."""
    return MvlmError(f"the server has a fault ({type(error).__name__}): its log says more", code="internal")
