"""Bodies on their way in: how many bytes of them a server holds at once is bounded, whoever sends them.

Room is asked for before the first byte is read, and given back when the answer has ended. What finds none is refused at
once, unread: it costs a head, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from export.runtime.errors import MvlmError

from .limits import Limits


class Intake:
    """The bytes of all bodies that are being read, wait, or are answered."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0

    @asynccontextmanager
    async def room(self, request: Request) -> AsyncIterator[None]:
        """Room for a request's body until the block is left.

        Raises `MvlmError`: a body of another type, one that is too large (`too-large`), or no room (`busy`).
        """
        size = self._size(request)
        if self.held + size > self._limits.bytes_in_flight:
            raise MvlmError(
                f"the bodies under way fill {self._limits.bytes_in_flight} bytes already: ask again later", code="busy"
            )
        self.held += size
        try:
            yield
        finally:
            self.held -= size

    async def read(self, request: Request) -> bytearray:
        """The whole body. Raises `MvlmError`: too many bytes, or not whole in time (`too-slow`)."""
        body, seconds = bytearray(), self._limits.body_seconds
        try:
            async with asyncio.timeout(seconds):
                async for part in request.stream():
                    if len(body) + len(part) > self._limits.body_bytes:
                        raise self._too_large()
                    body += part
        except TimeoutError:
            raise MvlmError(f"the body was not whole within {seconds:g} s: send it faster", code="too-slow") from None
        return body

    def _size(self, request: Request) -> int:
        """How many bytes to keep room for; where the caller does not say, as many as are allowed."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise MvlmError("the body must be application/json", code="unsupported-media")
        named = request.headers.get("content-length")
        size = int(named) if named else self._limits.body_bytes  # h11 has seen to it that it is a number
        if size > self._limits.body_bytes:
            raise self._too_large()
        return size

    def _too_large(self) -> MvlmError:
        return MvlmError(f"the body has more than {self._limits.body_bytes} bytes", code="too-large")
