"""What `mvlm serve` does under several connections, one short question and answer after another."""

from __future__ import annotations

import base64
import http.client
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.runtime.served import CONNECTIONS, load, percentiles, post, server


def throughput(bundle: Path, picture: Path, question: str, threads: int, requests: int) -> dict[str, Any]:
    """Answers per second, and milliseconds of half, 95 and 99 of 100 callers; one picture, so the look is kept."""
    body = _body(picture, question)

    def ask(connection: http.client.HTTPConnection) -> float:
        started = time.perf_counter()
        post(connection, "/v1/chat/completions", body).read()
        return 1000 * (time.perf_counter() - started)

    with server(bundle, threads) as listening:
        port = listening.port
        load(port, ask, 1, 3)
        return {f"{count} connections": _figures(*load(port, ask, count, requests)) for count in CONNECTIONS}


def _figures(took_ms: list[float], seconds: float) -> dict[str, float]:
    found = {f"{name}_ms": ms for name, ms in percentiles(took_ms, digits=2).items()}
    return {"answers_per_s": round(len(took_ms) / seconds, 1), **found}


def _body(picture: Path, question: str) -> bytes:
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": url}}]
    return json.dumps({"model": "mvlm-auto", "messages": [{"role": "user", "content": content}]}).encode()
