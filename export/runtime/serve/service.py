"""The paths of a server, and what stands behind each.

A worker asks the model, for several callers at once; a queue of bounded length stands before it. No URL is fetched, and
nothing of a request becomes a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from export.runtime.answer import Answer
from export.runtime.engine import Runtime
from export.runtime.errors import MvlmError
from export.runtime.request import Scale

from .asking import Asking
from .begin import begin
from .chat import Chat, model_names, read_chat, single_turn
from .choosing import choices_at, read_question
from .faces import Completion, Face, Usage
from .fields import scale_of
from .framing import LOOPBACK, Framing
from .journal import Journal
from .limits import Limits, Settings
from .page import page
from .prometheus import Metrics
from .replies import error_body, error_response
from .responses import Responded, read_responses
from .worker import Begun, Job, Worker

_OVERDUE_S = 30.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
    " img-src data: blob:; media-src blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}  # fmt: skip
Read = Callable[[bytes | bytearray, Limits, Mapping[str, Scale]], Chat]
Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """The handlers of one runtime."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self.runtime, self.settings, self.limits = runtime, settings, settings.limits
        self.models = model_names(runtime.manifest.scales, routed=runtime.router is not None, own=settings.model_name)
        self.metrics = Metrics()
        self.journal = Journal(settings.log, self.metrics)
        self.worker = Worker(runtime, self.limits, self.journal)
        self.asking = Asking(self.worker, self.journal, self.limits, self._usage)
        self.metrics.waiting.set_function(lambda: self.worker.waiting)
        self.metrics.bytes_in_flight.set_function(lambda: self.asking.intake.held)

    def app(self, ending: Callable[[], bool], more: Sequence[Route] = ()) -> Starlette:
        """`ending` says whether the server is about to end; `more` are routes beside its own."""
        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/metrics", self.guarded(self.show_metrics)),
            Route("/v1/models", self.guarded(self.list_models)),
            Route("/v1/models/{name}", self.guarded(self.one_model)),
            Route("/v1/mvlm/bundle", self.guarded(self.bundle)),
            Route("/v1/mvlm/choose", self.guarded(self.choose), methods=["POST"]),
            Route("/v1/chat/completions", self.guarded(self.chat), methods=["POST"]),
            Route("/v1/responses", self.guarded(self.respond), methods=["POST"]),
            *more,
        ]
        any_host = self.settings.host not in LOOPBACK or self.settings.token is not None
        origins = self.settings.origins
        middleware = [Middleware(Framing, any_host=any_host, origins=origins, ending=ending)]
        if origins:
            allowed: Any = {"allow_origins": origins, "allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
            middleware.append(Middleware(CORSMiddleware, **allowed))
        handlers: Any = {HTTPException: self._http_error}
        app = Starlette(routes=routes, middleware=middleware, lifespan=self._lifespan, exception_handlers=handlers)
        app.state.metrics = self.metrics
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.asking.close)

    # What is answered without the model

    async def page(self, request: Request) -> Response:
        return HTMLResponse(page(), headers=_HEADERS)

    async def health(self, request: Request) -> Response:
        """Whether questions can be answered: 503 once nobody takes them, or one runs on that was told to stop."""
        status = "ok" if self.worker.alive else "the worker has ended"
        if self.worker.overdue_s > _OVERDUE_S:
            status = "a question runs on that was told to stop"
        value = {"status": status, "waiting": self.worker.waiting}
        return JSONResponse(value, 200 if status == "ok" else 503)

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=self.metrics.content_type)

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in self.models]})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.require_model(name)
        return JSONResponse(_model(name))

    def require_model(self, name: object) -> None:
        """Raise `MvlmError` for a name that no model here has."""
        scale_of(self.models, name, None)

    async def bundle(self, request: Request) -> Response:
        """What the page must know of the bundle."""
        manifest, router, costs = self.runtime.manifest, self.runtime.router, self.runtime.costs
        view_tokens = [self.runtime.layout.tokens(scale) for scale in manifest.scales]
        return JSONResponse(
            {
                "family": manifest.family, "scales": list(manifest.scales), "view_tokens": view_tokens,
                "fit": manifest.image.fit, "tiles_fit": manifest.views.rule.fit if manifest.views else None,
                "size_px": manifest.image.size_px, "mean": list(manifest.image.mean), "models": list(self.models),
                "conversations": manifest.chat is not None,
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
        async with AsyncExitStack() as held:
            asked = await self.asking.read(request, lambda body: read_question(body, self.limits), held)

            def work(job: Job) -> dict[str, Any]:
                return choices_at(self.runtime, self.worker.look(asked.picture), asked, job)

            return JSONResponse(await self.asking.result(request, work))

    async def chat(self, request: Request) -> Response:
        return await self.reply(request, read_chat, Completion)

    async def respond(self, request: Request) -> Response:
        return await self.reply(request, read_responses, Responded)

    async def reply(self, request: Request, read: Read, face: Callable[[Chat], Face]) -> Response:
        """The answer to a body that `read` makes a chat of, in the shape of a face."""
        async with AsyncExitStack() as held:
            chat = await self.asking.read(request, lambda body: read(body, self.limits, self.models), held)
            return await self.asking.reply(request, face(chat), lambda job: self.begin(chat), held)

    def begin(self, chat: Chat) -> Begun:
        """Prepare the answers to a chat, in the worker's thread for that."""
        return begin(self.runtime, self.worker, chat)

    def _usage(self, chat: Chat, answers: Sequence[Answer]) -> Usage:
        written, first = sum(len(answer.token_ids) for answer in answers), answers[0]
        if first.prompt_tokens:
            return Usage(first.prompt_tokens, first.prompt_tokens - first.new_tokens, written)
        _, question = single_turn(chat)
        return Usage(self.runtime.reader.positions(question, first.num_visual_tokens + first.separators, 0), 0, written)

    # Who may ask, and what went wrong

    def guarded(self, handler: Handler, told: Callable[[MvlmError], Response] = error_response) -> Handler:
        """Ask for the token, and make a response of every error as `told` has it."""

        async def handle(request: Request) -> Response:
            started = time.perf_counter()
            try:
                self._require_token(request)
                return await handler(request)
            except ClientDisconnect:
                error = MvlmError("the caller has gone", code="closed")
            except MvlmError as refused:
                error = refused
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as fault:  # a panic of a library is no `Exception`
                error = self.worker.failure(fault)
            self.journal.note(request.url.path, started, code=error.code)
            return told(error)

        return handle

    def _require_token(self, request: Request) -> None:
        """Raise `MvlmError` unless the caller brings the token. Its bytes are compared: tokens may be of any script."""
        if self.settings.token is None:
            return
        given = dict(request.scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        right = hmac.compare_digest(token.strip(), self.settings.token.encode())
        if scheme.lower() != b"bearer" or not right:
            raise MvlmError("the token is missing or wrong: send Authorization: Bearer TOKEN", code="unauthorized")

    async def _http_error(self, request: Request, error: HTTPException) -> Response:
        """A path or a method that is not there; the methods that are stand in `Allow`."""
        body = error_body(MvlmError(str(error.detail), code="http"), error.status_code)
        if request.url.path.startswith("/api/"):  # Ollama's clients read a line
            body = {"error": str(error.detail)}
        return JSONResponse(body, error.status_code, dict(error.headers or {}))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "mvlm"}
