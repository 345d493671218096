"""A real server on a free port, for the tests that talk to one."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn

from export.runtime import Runtime
from export.runtime.backends.onnx import Decoder
from export.runtime.serve.server import Settings, listen, make_server


@dataclass
class Served:
    """Where a server listens, and plain ways to ask it."""

    port: int
    runtime: Runtime
    token: str | None = None
    server: uvicorn.Server | None = None

    def stop(self) -> None:
        """Begin to end, as a signal would."""
        assert self.server is not None
        self.server.should_exit = True

    def runtime_metrics(self) -> bytes:
        """What `/metrics` would say, without a connection of its own."""
        assert self.server is not None
        return self.server.config.app.state.metrics.text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body=None, headers=None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            own = {"Content-Type": "application/json"} | (
                {"Authorization": f"Bearer {self.token}".encode()} if self.token else {}
            )
            data = json.dumps(body).encode() if isinstance(body, dict | list) else body
            connection.request(method, path, data, own | (headers or {}))
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def chat(self, body, **headers) -> tuple[int, dict]:
        status, _, data = self.request("POST", "/v1/chat/completions", body, headers)
        return status, json.loads(data)


@contextlib.contextmanager
def held_steps(monkeypatch) -> Iterator[threading.Event]:
    """The decoder's steps wait until the block ends; what is given tells that the first of them has begun."""
    begun, go, step = threading.Event(), threading.Event(), Decoder.step

    def held(*of):
        begun.set()
        assert go.wait(60)
        return step(*of)

    monkeypatch.setattr(Decoder, "step", held)
    try:
        yield begun
    finally:
        go.set()


@contextlib.contextmanager
def serving(runtime: Runtime, **settings) -> Iterator[Served]:
    """Serve until the block ends; nothing is left behind."""
    server = make_server(runtime, Settings(port=0, **settings))
    listening = listen(server)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield Served(listening.getsockname()[1], runtime, settings.get("token"), server)
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


def data_url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def body(picture: bytes, question: str, model: str = "mvlm-auto", **more) -> dict:
    """A chat as OpenAI's clients send it."""
    content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": data_url(picture)}}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}
