"""The paths of Ollama's API, over the same service."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .body import read_json
from .ollama import LATEST, OllamaAnswer, ollama_error, read_ollama, read_prompt, shown, tags
from .service import Service

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
            route("/api/show", self.show, "POST"),
            route("/api/chat", self.chat, "POST"),
            route("/api/generate", self.generate, "POST"),
        ]

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": _VERSION})

    async def tags(self, request: Request) -> Response:
        return JSONResponse(tags(self._service.models, self._service.runtime.manifest))

    async def show(self, request: Request) -> Response:
        async with AsyncExitStack() as held:
            value = await self._service.asking.read(request, read_json, held)
        name = value.get("model") or value.get("name")
        self._service.require_model(name.removesuffix(LATEST) if isinstance(name, str) else name)
        return JSONResponse(shown(self._service.runtime.manifest))

    async def chat(self, request: Request) -> Response:
        return await self._service.reply(request, read_ollama, OllamaAnswer)

    async def generate(self, request: Request) -> Response:
        return await self._service.reply(request, read_prompt, lambda chat: OllamaAnswer(chat, prompted=True))
