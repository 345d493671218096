"""The paths of Ollama's API, over the same service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from export.runtime.request import Scale

from .body import read_json
from .chat import Chat
from .limits import Limits
from .ollama import LATEST, OllamaAnswer, loaded, ollama_error, read_ollama, read_prompt, running, shown, tags
from .service import Service

Read = Callable[[dict[str, Any], Limits, Mapping[str, Scale]], Chat]
_VERSION = "0.5.0"  # of Ollama's API that is spoken here


class OllamaPaths:
    """What Ollama's clients ask for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        def route(path: str, handler: Any, method: str) -> Route:
            return Route(path, self._service.guarded(handler, ollama_error), methods=[method])

        return [
            route("/api/version", self.version, "GET"),
            route("/api/tags", self.tags, "GET"),
            route("/api/ps", self.running, "GET"),
            route("/api/show", self.show, "POST"),
            route("/api/chat", self.chat, "POST"),
            route("/api/generate", self.generate, "POST"),
        ]

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": _VERSION})

    async def tags(self, request: Request) -> Response:
        return JSONResponse(tags(self._service.models, self._service.runtime.manifest))

    async def running(self, request: Request) -> Response:
        return JSONResponse(running(self._service.models, self._service.runtime.manifest))

    async def show(self, request: Request) -> Response:
        async with AsyncExitStack() as held:
            value = await self._service.asking.read(request, read_json, held)
        name = value.get("model") or value.get("name")
        self._service.require_model(name.removesuffix(LATEST) if isinstance(name, str) else name)
        return JSONResponse(shown(self._service.runtime.manifest))

    async def chat(self, request: Request) -> Response:
        return await self._reply(request, read_ollama, prompted=False)

    async def generate(self, request: Request) -> Response:
        return await self._reply(request, read_prompt, prompted=True)

    async def _reply(self, request: Request, read: Read, *, prompted: bool) -> Response:
        service = self._service

        def parse(body: bytes | bytearray) -> Chat | dict[str, Any]:
            value = read_json(body)
            return loaded(value, service.models, prompted=prompted) or read(value, service.limits, service.models)

        async with AsyncExitStack() as held:
            asked = await service.asking.read(request, parse, held)
            if isinstance(asked, dict):
                return JSONResponse(asked)
            face = OllamaAnswer(asked, prompted)
            return await service.asking.reply(request, face, lambda job: service.begin(asked), held)
