"""What HTTP asks for on every path: whose name a request may use, no request that can be read in two ways, and the end.

Without a token, a page of another site must not reach a server on this machine under a name of its own (DNS rebinding),
so only names of this machine are taken; with one, nobody gets in who does not know it, whatever the name. What a page
of another site sends to a name of this machine is refused by its `Origin`, unless that site is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from export.runtime.errors import MvlmError

from .body import short
from .replies import error_response

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
_CLOSE = (b"connection", b"close")


class Framing:
    """ASGI middleware. `ending` says whether the server is about to end: callers are told not to come back."""

    def __init__(self, app: ASGIApp, *, any_host: bool, origins: Collection[str], ending: Callable[[], bool]) -> None:
        self._app, self._any_host, self._origins, self._ending = app, any_host, origins, ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # RFC 9112, 6.1: two lengths are how requests are smuggled past a proxy, and the connection must end.
        two_lengths = "content-length" in headers and "transfer-encoding" in headers

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start" and (two_lengths or self._ending()):
                others = [(name, value) for name, value in message["headers"] if name != _CLOSE[0]]
                message = {**message, "headers": [*others, _CLOSE]}
            await send(message)

        refused = None
        if two_lengths:
            refused = MvlmError("the body has a length and chunks: send one of them", code="bad-body")
        elif not self._any_host and _name(headers.get("host", "")) not in LOOPBACK:
            refused = MvlmError(
                f"the host name {short(headers.get('host', ''))} is not this machine's: ask for 127.0.0.1, or start the"
                " server with MVLM_TOKEN, which lets it take any name",
                code="bad-host",
            )
        elif (origin := headers.get("origin")) and not self._known(origin, headers.get("host", "")):
            refused = MvlmError(
                f"a page of {short(origin)} may not ask here: start the server with --allow-origin {short(origin)}",
                code="bad-origin",
            )
        await (error_response(refused) if refused else self._app)(scope, receive, send_on)

    def _known(self, origin: str, host: str) -> bool:
        """Whether a page may ask: one of this server's own, of a site that is allowed, or one that brings a token."""
        return self._any_host or origin in self._origins or origin.partition("://")[2] == host


def _name(host: str) -> str:
    """A host without its port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0].lower()
