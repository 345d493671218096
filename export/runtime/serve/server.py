"""A bundle over HTTP: where it listens, and how its connections are held within bounds."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from export.runtime.engine import Runtime
from export.runtime.errors import MvlmError

from .connections import BACKLOG, BoundedProtocol, Roster
from .framing import LOOPBACK
from .limits import Limits, Settings
from .ollama_paths import OllamaPaths
from .service import Service

__all__ = ["Limits", "Settings", "listen", "make_server", "serve_forever"]


def serve_forever(runtime: Runtime, settings: Settings, ready: Callable[[str], None]) -> None:
    """Listen until interrupted; `ready` is told the URL. Raises `MvlmError`: no token for others, a port in use."""
    server = make_server(runtime, settings)
    listening = listen(server)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    ready(f"http://{host}:{listening.getsockname()[1]}/")
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def make_server(runtime: Runtime, settings: Settings) -> uvicorn.Server:
    """A server that is not started yet. Raises `MvlmError` where others could ask without a token."""
    if settings.host not in LOOPBACK and not settings.token:
        raise MvlmError(
            f"listening on {settings.host} lets others ask: set MVLM_TOKEN, or listen on 127.0.0.1", code="no-token"
        )
    service, roster = Service(runtime, settings), Roster(settings.limits)
    service.metrics.connections.set_function(lambda: len(roster))
    protocol: Any = functools.partial(BoundedProtocol, roster=roster)
    app = service.app(lambda: server.should_exit, OllamaPaths(service).routes())
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, loop="asyncio", http=protocol, ws="none", log_config=None,
        log_level="critical", access_log=False, backlog=BACKLOG, timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=65536,
    )  # fmt: skip
    server = uvicorn.Server(config)
    return server


def listen(server: uvicorn.Server) -> socket.socket:
    """A socket that callers can come to at once, before the server's first turn. Raises `MvlmError`: port in use."""
    try:
        listening = server.config.bind_socket()
    except SystemExit:  # uvicorn's way to say that the port is taken
        config = server.config
        raise MvlmError(f"port {config.port} of {config.host} is taken: name another with --port") from None
    # asyncio leaves this off where a socket does not name its protocol, and an answer then waits 40 ms for an ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.listen(BACKLOG)
    return listening
