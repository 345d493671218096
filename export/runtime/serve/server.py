"""A bundle over HTTP: OpenAI's chat completions, what Prometheus reads, and a page to try it on.

One worker asks the model; a queue of bounded length stands before it. No URL is fetched, and nothing of a request
becomes a path. Listens on this machine alone unless a token is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import socket
import sys
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from export.runtime.answer import Answer
from export.runtime.engine import Runtime
from export.runtime.errors import MvlmError

from .chat import (
    Chat,
    Limits,
    facts_of,
    finish_reason,
    model_names,
    read_chat,
    read_data_url,
    read_json,
    require_question,
)  # fmt: skip
from .prometheus import Metrics
from .worker import Job, Worker

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_PAGE = Path(__file__).with_name("page.html")
_STATUS = {
    "busy": 429, "model_not_found": 404, "too-large": 413, "unauthorized": 401, "unsupported-media": 415,
    "engine-failed": 500, "internal": 500, "timeout": 503, "closed": 499,
}  # fmt: skip
_MOST_PRICES = 256
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
    " img-src data: blob:; media-src blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Where to listen, who may ask, and how much. `log` gets a JSON line a request, without what was asked."""

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    limits: Limits = field(default_factory=Limits)
    log: Path | None = None


def serve_forever(runtime: Runtime, settings: Settings, ready: Callable[[str], None]) -> None:
    """Listen until interrupted; `ready` is told the URL. Raises `MvlmError`: no token for others, a port in use."""
    server = make_server(runtime, settings)
    listening = listen(server)
    ready(f"http://{settings.host}:{listening.getsockname()[1]}/")
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def make_server(runtime: Runtime, settings: Settings) -> uvicorn.Server:
    if settings.host not in _LOOPBACK and not settings.token:
        raise MvlmError(
            f"listening on {settings.host} lets others ask: set MVLM_TOKEN, or listen on 127.0.0.1", code="no-token"
        )
    app = Service(runtime, settings).app()
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, log_level="critical", access_log=False,
        timeout_graceful_shutdown=5, h11_max_incomplete_event_size=65536,
    )  # fmt: skip
    return uvicorn.Server(config)


def listen(server: uvicorn.Server) -> socket.socket:
    """A socket that callers can come to at once, before the server's first turn. Raises `MvlmError`: port in use."""
    try:
        listening = server.config.bind_socket()
    except SystemExit:  # uvicorn's way to say that the port is taken
        config = server.config
        raise MvlmError(f"port {config.port} of {config.host} is taken: name another with --port") from None
    # asyncio leaves this off where a socket does not name its protocol, and an answer then waits 40 ms for an ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.listen()
    return listening


class Service:
    """The handlers of one runtime."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self.runtime, self.settings, self.limits = runtime, settings, settings.limits
        self.models = model_names(runtime.manifest.scales, routed=runtime.router is not None)
        self.metrics = Metrics()
        self._log_lost = False
        self.worker = Worker(runtime, settings.limits.queue, settings.limits.pixels)
        self.metrics.waiting.set_function(lambda: self.worker.waiting)

    def app(self) -> Starlette:
        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/metrics", self.guarded(self.show_metrics)),
            Route("/v1/models", self.guarded(self.list_models)),
            Route("/v1/mvlm/bundle", self.guarded(self.bundle)),
            Route("/v1/mvlm/choose", self.guarded(self.choose), methods=["POST"]),
            Route("/v1/chat/completions", self.guarded(self.chat), methods=["POST"]),
        ]
        # On this machine alone, a page of another site must not reach it under a name of its own.
        hosts = list(_LOOPBACK) if self.settings.host in _LOOPBACK else ["*"]
        middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)]
        handlers: Any = {HTTPException: self._http_error}
        return Starlette(routes=routes, middleware=middleware, lifespan=self._lifespan, exception_handlers=handlers)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.worker.close)

    # What is answered without the model

    async def page(self, request: Request) -> Response:
        return FileResponse(_PAGE, media_type="text/html", headers=_HEADERS)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": self.worker.waiting})

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=self.metrics.content_type)

    async def list_models(self, request: Request) -> Response:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "mvlm"} for name in self.models]
        return JSONResponse({"object": "list", "data": models})

    async def bundle(self, request: Request) -> Response:
        """What the page must know of the bundle."""
        manifest, router, costs = self.runtime.manifest, self.runtime.router, self.runtime.costs
        return JSONResponse(
            {
                "family": manifest.family, "scales": list(manifest.scales), "fit": manifest.image.fit,
                "size_px": manifest.image.size_px, "mean": list(manifest.image.mean), "models": self.models,
                "router": router is not None,
                "cost_unit": router.facts.cost_unit if router else "tokens",
                "default_price": router.facts.default_price if router else None,
                "floor": costs.floor if costs else None,
                "cost_ms": costs.costs if costs else None,
            }
        )  # fmt: skip

    # What the model is asked

    async def choose(self, request: Request) -> Response:
        """The router's probabilities for a picture and a question, and its choice at each of some prices."""
        value = read_json(await self._body(request))
        picture = read_data_url(value.get("picture"), self.limits)
        question = require_question(value.get("question"), self.limits)
        prices = value.get("prices") or [None]
        if not isinstance(prices, list) or len(prices) > _MOST_PRICES:
            raise MvlmError(f"prices is no list of at most {_MOST_PRICES} numbers", code="bad-price")

        def work(job: Job) -> dict[str, Any]:
            view = self.worker.look(picture)
            choices = [view.choose(question, price=price) for price in prices]
            router = self.runtime.router
            assert router is not None  # `choose` would have raised
            return {
                "scales": list(router.offered), "probabilities": list(choices[0].probabilities.values()),
                "costs": router.costs.tolist(), "cost_unit": router.facts.cost_unit,
                "choices": [choice.scale for choice in choices], "reasons": [choice.reason for choice in choices],
                "unfamiliar": choices[0].unfamiliar, "patches": view.words.shape[0],
            }  # fmt: skip

        return JSONResponse(await self._result(request, work))

    async def chat(self, request: Request) -> Response:
        started = time.perf_counter()
        chat = read_chat(await self._body(request), self.limits, self.models)

        def work(job: Job) -> Answer:
            view = self.worker.look(chat.picture)
            with view.stream(chat.question, chat.scale, **chat.options) as stream:
                for piece in stream:
                    job.put(piece)
                    if job.stopped:
                        stream.stop()
                return stream.answer

        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": chat.model}
        if chat.stream:
            events = self._events(request, work)
            first = await anext(events)  # an error that comes before any text is a status, not a stream
            stream = self._sse(first, events, head, chat, started)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        answer = await self._result(request, work)
        self._note(request, started, answer)
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason(answer), "logprobs": None}
        usage, facts = self._usage(chat, answer), facts_of(answer)
        return JSONResponse({"object": "chat.completion", **head, "choices": [choice], "usage": usage, "mvlm": facts})

    async def _sse(
        self, first: Any, events: AsyncGenerator[Any, None], head: dict[str, Any], chat: Chat, started: float
    ) -> AsyncIterator[bytes]:
        """Server-sent events, as OpenAI's clients read them."""

        def chunk(delta: dict[str, str], finish: str | None = None, **more: Any) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return _event({"object": "chat.completion.chunk", **head, "choices": [choice], **more})

        yield chunk({"role": "assistant", "content": ""})
        try:
            event = first
            while True:
                if isinstance(event, str):
                    yield chunk({"content": event})
                elif isinstance(event, Answer):
                    self._note(None, started, event)
                    yield chunk({}, finish_reason(event), mvlm=facts_of(event))
                    if chat.with_usage:
                        usage = self._usage(chat, event)
                        yield _event({"object": "chat.completion.chunk", **head, "choices": [], "usage": usage})
                    break
                event = await anext(events)
            yield b"data: [DONE]\n\n"
        except MvlmError as error:
            self._note(None, started, None, error.code)
            yield _event(_error_body(error))
        finally:
            await events.aclose()

    async def _result(self, request: Request, work: Callable[[Job], Any]) -> Any:
        """What some work comes to; its pieces are in it."""
        async with contextlib.aclosing(self._events(request, work)) as events:
            async for event in events:
                result = event
        return result

    async def _events(self, request: Request, work: Callable[[Job], Any]) -> AsyncGenerator[Any, None]:
        """Queue some work and yield what it gives. It is stopped when the caller goes, or when time is up."""
        job = Job(work)
        self.worker.submit(job)
        gone = asyncio.ensure_future(self._gone(request))
        until = time.monotonic() + self.limits.seconds
        try:
            while True:
                event = asyncio.ensure_future(job.next())
                waited = max(0.0, until - time.monotonic())
                done, _ = await asyncio.wait({event, gone}, timeout=waited, return_when=asyncio.FIRST_COMPLETED)
                if event not in done:
                    event.cancel()
                    if gone in done:
                        raise MvlmError("the caller has gone", code="closed")
                    raise MvlmError(f"no answer within {self.limits.seconds:g} s: ask again later", code="timeout")
                result = event.result()
                if isinstance(result, MvlmError):
                    raise result
                yield result
                if not isinstance(result, str):
                    return
        finally:
            job.stop()
            gone.cancel()

    async def _gone(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    async def _body(self, request: Request) -> bytes:
        """The whole body, not a byte more than is allowed."""
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise MvlmError("the body must be application/json", code="unsupported-media")
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self.limits.body_bytes:
                raise MvlmError(f"the body has more than {self.limits.body_bytes} bytes", code="too-large")
            parts.append(part)
        return b"".join(parts)

    def _usage(self, chat: Chat, answer: Answer) -> dict[str, int]:
        asked = self.runtime.reader.positions(chat.question, answer.num_visual_tokens, 0)
        written = len(answer.token_ids)
        return {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}

    # Who may ask, what went wrong, what is written down

    def guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Ask for the token, and make a response of every error."""

        async def handle(request: Request) -> Response:
            started = time.perf_counter()
            try:
                self._require_token(request)
                return await handler(request)
            except ClientDisconnect:
                error = MvlmError("the caller has gone", code="closed")
            except MvlmError as refused:
                error = refused
            self._note(request, started, None, error.code)
            status = _STATUS.get(error.code, 400)
            headers = {"Retry-After": "1"} if status in (429, 503) else {}
            headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
            # What is left of a body that was refused would be taken for the next request.
            headers |= {"Connection": "close"} if status == 413 else {}
            return JSONResponse(_error_body(error), status, headers)

        return handle

    def _require_token(self, request: Request) -> None:
        if self.settings.token is None:
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.settings.token}".encode()):
            raise MvlmError("the token is missing or wrong: send Authorization: Bearer TOKEN", code="unauthorized")

    async def _http_error(self, request: Request, error: HTTPException) -> Response:
        return JSONResponse(_error_body(MvlmError(str(error.detail), code="http")), error.status_code)

    def _note(self, request: Request | None, started: float, answer: Answer | None, code: str | None = None) -> None:
        """Count a request and write its line."""
        seconds = time.perf_counter() - started
        if answer:
            self.metrics.answered(answer, seconds)
        elif code:
            self.metrics.refused(code)
        if self.settings.log is None:
            return
        line = {"time": round(time.time(), 3), "path": request.url.path if request else "/v1/chat/completions",
                "ms": round(1000 * seconds, 1), "scale": answer.num_visual_tokens if answer else None,
                "code": code}  # fmt: skip
        try:
            with self.settings.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # a full disk is no reason not to answer
            if not self._log_lost:
                print(f"the log {self.settings.log} cannot be written ({error.strerror}); serving on", file=sys.stderr)
            self._log_lost = True
            self.metrics.log_lines_lost.inc()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _error_body(error: MvlmError) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": "invalid_request_error", "code": error.code, "param": None}}
