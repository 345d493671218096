"""From a request to an answer: its body is read within bounds, its question queued, its pieces passed on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from export.runtime.answer import Answer
from export.runtime.errors import MvlmError

from .chat import Chat
from .faces import Face, Usage
from .intake import Intake
from .journal import Journal
from .limits import Limits
from .worker import Event, Job, Part, Worker

T = TypeVar("T")


class Asking:
    """What stands between HTTP and the worker."""

    def __init__(
        self, worker: Worker, journal: Journal, limits: Limits, usage: Callable[[Chat, list[Answer]], Usage]
    ) -> None:
        """`usage` counts the tokens of the answers to a chat."""
        self._worker, self._journal, self._limits, self._usage = worker, journal, limits, usage
        self.intake = Intake(limits)
        # One body at a time is taken apart, beside the event loop: JSON and base64 hold several times its bytes.
        self._parser = ThreadPoolExecutor(1, "mvlm parser")

    def close(self) -> None:
        self._worker.close()
        self._parser.shutdown()

    async def read(self, request: Request, parse: Callable[[bytearray], T], held: AsyncExitStack) -> T:
        """What a request's body says; its bytes count until `held` is left. With too many waiting, none is read."""
        self._worker.require_room()
        await held.enter_async_context(self.intake.room(request))
        body = await self.intake.read(request)
        return await asyncio.get_running_loop().run_in_executor(self._parser, parse, body)

    async def reply(self, request: Request, face: Face, work: Callable[[Job], Any], held: AsyncExitStack) -> Response:
        """An answer in the shape of a face, whole or as a stream. `held` goes with a stream, and is left at its end."""
        started = time.perf_counter()
        if not face.chat.stream:
            answers = await self.result(request, work)
            self._journal.note(request.url.path, started, answers)
            return JSONResponse(face.whole(answers, self._usage(face.chat, answers)))
        events = await held.enter_async_context(aclosing(self._events(request, work)))
        first = await anext(events)  # an error that comes before any text is a status, not a stream
        pieces = self._pieces(request, face, first, events, started)
        return _Held(pieces, held.pop_all(), face.media_type)

    async def result(self, request: Request, work: Callable[[Job], Any]) -> Any:
        """What some work comes to; its pieces are in it."""
        async with aclosing(self._events(request, work)) as events:
            async for event in events:
                result = event
        return result

    async def _pieces(
        self, request: Request, face: Face, first: Any, events: AsyncGenerator[Any, None], started: float
    ) -> AsyncIterator[bytes]:
        for part in face.opening():
            yield part
        try:
            event = first
            while isinstance(event, Part):
                for part in face.piece(event):
                    yield part
                event = await anext(events)
            assert isinstance(event, list)
            self._journal.note(request.url.path, started, event)
            for part in face.closing(event, self._usage(face.chat, event)):
                yield part
        except MvlmError as error:
            self._journal.note(request.url.path, started, code=error.code)
            for part in face.failed(error):
                yield part

    async def _events(self, request: Request, work: Callable[[Job], Any]) -> AsyncGenerator[Any, None]:
        """Queue some work and yield what it gives. It is stopped when the caller goes, or when time is up."""
        job = Job(work)
        self._worker.submit(job)
        gone = asyncio.ensure_future(_gone(request))
        until = time.monotonic() + self._limits.seconds
        try:
            while True:
                # Tokens of several callers come together: what lies there is taken without a task of its own.
                result = None if gone.done() else job.ready()
                if result is None:
                    result = await self._next(job, gone, until)
                if isinstance(result, MvlmError):
                    raise result
                yield result
                if not isinstance(result, Part):
                    return
        finally:
            job.stop()
            gone.cancel()

    async def _next(self, job: Job, gone: asyncio.Future[Any], until: float) -> Event:
        """The next event of a job. Raises `MvlmError` when the caller goes, or time is up."""
        event: asyncio.Future[Any] = asyncio.ensure_future(job.next())
        waited = max(0.0, until - time.monotonic())
        done, _ = await asyncio.wait({event, gone}, timeout=waited, return_when=asyncio.FIRST_COMPLETED)
        if event in done:
            found: Event = event.result()
            return found
        event.cancel()
        if gone in done:
            raise MvlmError("the caller has gone", code="closed")
        raise MvlmError(f"no answer within {self._limits.seconds:g} s: ask again later", code="timeout")


class _Held(StreamingResponse):
    """A stream that gives back what its request held, whether or not it is ever read."""

    def __init__(self, pieces: AsyncIterator[bytes], held: AsyncExitStack, media_type: str) -> None:
        super().__init__(pieces, media_type=media_type, headers={"Cache-Control": "no-store"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
