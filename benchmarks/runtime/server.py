"""What `mvlm serve` does under 1, 8 and 32 connections: a server of its own process, and callers that wait for it."""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

_CONNECTIONS = (1, 8, 32)


def throughput(bundle: Path, picture: Path, question: str, threads: int, requests: int) -> dict[str, Any]:
    """Answers per second, and milliseconds of half, 95 and 99 of 100 callers; one picture, so the look is kept."""
    command = [sys.executable, "-m", "mvlm_core.cli", "serve", "--bundle", str(bundle), "--port", "0"]
    server = subprocess.Popen(
        [*command, "--threads", str(threads), "--queue", str(max(_CONNECTIONS))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().strip().rstrip("/").rpartition(":")[2])
        body = _body(picture, question)
        _ask(port, body, 3)
        return {f"{count} connections": _load(port, body, count, requests) for count in _CONNECTIONS}
    finally:
        server.terminate()
        server.wait(20)


def _load(port: int, body: bytes, connections: int, requests: int) -> dict[str, float]:
    took: list[float] = []
    share = max(1, requests // connections)
    callers = [threading.Thread(target=lambda: took.extend(_ask(port, body, share))) for _ in range(connections)]
    started = time.perf_counter()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    seconds = time.perf_counter() - started
    assert len(took) == share * connections
    half, most, nearly_all = (round(float(q), 2) for q in np.percentile(took, [50, 95, 99]))
    return {
        "answers_per_s": round(len(took) / seconds, 1), "p50_ms": half, "p95_ms": most, "p99_ms": nearly_all
    }  # fmt: skip


def _ask(port: int, body: bytes, times: int) -> list[float]:
    connection, took = http.client.HTTPConnection("127.0.0.1", port, timeout=60), []
    for _ in range(times):
        started = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        response.read()
        took.append(1000 * (time.perf_counter() - started))
    connection.close()
    return took


def _body(picture: Path, question: str) -> bytes:
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": url}}]
    return json.dumps({"model": "mvlm-auto", "messages": [{"role": "user", "content": content}]}).encode()
