"""Connections that cannot be held for ever: deadlines for heads and bodies, and a roster of bounded length.

uvicorn waits without end for a first request, for the rest of a body, and for a caller who reads nothing. Here each of
these has a deadline, and where the roster is full, the connection that is idle for longest gives way to the new one: so
callers who say nothing keep nobody out.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import OrderedDict
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits

try:
    import resource
except ImportError:  # a system without limits of that kind
    resource = None  # type: ignore[assignment]

# Connections that the kernel holds until they are accepted. asyncio takes as many in each turn, and only the third turn
# after one was taken closes another in its favour.
BACKLOG = 16
_TURNS = 3
_OWN_FILES = 64  # descriptors for whatever else a process opens
_LINGER_S = 1.0
_IN_USE = {"message": "all connections are in use: ask again later", "type": "server_error", "code": "busy"}


class Roster:
    """The open connections, those that are idle for longest first; at most as many as descriptors allow."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.most = min(limits.connections, _connections_possible())
        self._open: OrderedDict[BoundedProtocol, None] = OrderedDict()

    def add(self, connection: BoundedProtocol) -> bool:
        """Whether there is room for one more, if need be at the cost of the one that is idle for longest."""
        if len(self._open) >= self.most:
            idle = next((other for other in self._open if other.idle), None)
            if idle is None:
                return False
            self.remove(idle)
            idle.transport.abort()
        self._open[connection] = None
        return True

    def touch(self, connection: BoundedProtocol) -> None:
        if connection in self._open:
            self._open.move_to_end(connection)

    def remove(self, connection: BoundedProtocol) -> None:
        self._open.pop(connection, None)

    def __len__(self) -> int:
        return len(self._open)


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 connection with deadlines. Between requests its own keep-alive timer runs as before."""

    def __init__(self, *args: Any, roster: Roster, **options: Any) -> None:
        super().__init__(*args, **options)
        self._roster, self._limits = roster, roster.limits
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._waits_for: tuple[str, Any] | None = None
        self._discarded = 0

    @property
    def idle(self) -> bool:
        """Whether no answer is due on it: nothing was asked yet, or not all of it, or it is answered."""
        return self._between or self.conn.their_state is h11.SEND_BODY

    @property
    def _between(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not self._roster.add(self):
            transport.write(_refusal())
            transport.close()
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._roster.remove(self)
        self._cancel()
        if self._stalled:
            self._stalled.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_leftover():
            self._discarded += len(data)
            if self._discarded > self._limits.body_bytes:
                self.transport.abort()
                return
        super().data_received(data)
        self._roster.touch(self)
        self._watch()

    def on_response_complete(self) -> None:
        self._discarded = 0
        super().on_response_complete()
        if self._is_leftover():  # the rest of a body that was refused is not idleness: `body_seconds` bounds it
            self._unset_keepalive_if_required()
        self._roster.touch(self)
        self._watch()

    def shutdown(self) -> None:
        """Close an idle connection, but for a request that is under way on it leave it a moment."""
        if self._between and not self._is_leftover():
            self.loop.call_later(_LINGER_S, self._close_if_idle)
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()
            self._stalled = None

    def _close_if_idle(self) -> None:
        if self._between and not self.transport.is_closing():
            super().shutdown()

    def _is_leftover(self) -> bool:
        """Whether what arrives is the rest of a body that has been answered already."""
        return self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY

    def _watch(self) -> None:
        """Set the deadline of what the connection waits for; what is still the same keeps its own.

        A body that a handler reads has the handler's own deadline, so that it can answer.
        """
        waits_for, seconds = None, 0.0
        if self._is_leftover():
            waits_for, seconds = ("rest", self.cycle), self._limits.body_seconds
        elif self.conn.their_state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            waits_for, seconds = ("head", self.cycle), self._limits.head_seconds
        if waits_for == self._waits_for:
            return
        self._cancel()
        self._waits_for = waits_for
        if waits_for:
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _cancel(self) -> None:
        self._waits_for = None
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None


def _refusal() -> bytes:
    body = json.dumps({"error": _IN_USE | {"param": None}})
    head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close"
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def _connections_possible() -> int:
    """How many connections the descriptors of this process suffice for, those that are open now left out."""
    if resource is None:
        return 2**20
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:
        used = _OWN_FILES
    return max(1, allowed - used - _OWN_FILES - _TURNS * BACKLOG) if allowed != resource.RLIM_INFINITY else 2**20
