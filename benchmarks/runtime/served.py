"""A server of its own process, and callers that wait for it: what the benchmarks of servers share."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

CONNECTIONS = (1, 8, 32)
_HEADERS = {"Content-Type": "application/json"}
T = TypeVar("T")


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and which process it is."""

    port: int
    pid: int


@contextmanager
def server(bundle: Path, threads: int, queue: int = max(CONNECTIONS)) -> Iterator[Listening]:
    """`mvlm serve`, whose queue holds as many as there may be callers."""
    command = [sys.executable, "-m", "mvlm_core.cli", "serve", "--bundle", str(bundle), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--threads", str(threads), "--queue", str(queue)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().strip().rstrip("/").rpartition(":")[2])
        yield Listening(port, process.pid)
    finally:
        process.terminate()
        process.wait(20)


def load(
    port: int, ask: Callable[[http.client.HTTPConnection], T], connections: int, answers: int
) -> tuple[list[T], float]:
    """What about `answers` questions came to, and the seconds of all; callers ask again once they are answered."""
    share, got = max(1, answers // connections), list[T]()

    def call() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        for _ in range(share):
            got.append(ask(connection))
        connection.close()

    callers = [threading.Thread(target=call) for _ in range(connections)]
    started = time.perf_counter()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    seconds = time.perf_counter() - started
    assert len(got) == share * connections
    return got, seconds


def post(connection: http.client.HTTPConnection, path: str, body: bytes) -> http.client.HTTPResponse:
    """The answer to a body, unread. Each has a connection of its own: servers differ in when they end one."""
    connection.close()
    connection.request("POST", path, body, _HEADERS)
    response = connection.getresponse()
    assert response.status == 200, response.read()
    return response


def percentiles(values: list[float], digits: int = 1) -> dict[str, float]:
    """Half, 95 and 99 of 100."""
    found = np.percentile(np.asarray(values), [50, 95, 99])
    return dict(zip(("p50", "p95", "p99"), (round(float(value), digits) for value in found), strict=True))


def cores_of_others(watch_s: float = 2.0) -> float:
    """How many cores are busy while this benchmark does nothing; more than a little, and its times are too long."""
    before, started = _busy_s(), time.perf_counter()
    time.sleep(watch_s)
    return round((_busy_s() - before) / (time.perf_counter() - started), 2)


def _busy_s() -> float:
    """Seconds that all cores together were busy since the machine started."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split(maxsplit=4)[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")
