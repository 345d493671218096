"""Many callers at one server: answers a second, and milliseconds to the first token and between tokens, as callers see.

`python -m benchmarks.runtime.callers` serves a random model whose language model is large enough that tokens cost, in
several precisions, and with `--bundle` another, as the demo's. Each caller streams one answer after another, each about
a question of its own; a bias makes every answer as long as it may be, with a piece of text for every token.
"""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from tokenizers import Tokenizer

from benchmarks.machine import keep
from benchmarks.runtime.random_models import random_run

_WIDTH, _LAYERS, _SCALE, _TOKENS = 896, 24, 36, 24
_PRECISIONS = ("float32", "int4", "prefill=int8,decode=int4")
_CONNECTIONS = (1, 8, 32)
_LETTER = "a"


@dataclass
class Seen:
    """What callers saw: seconds to the first token of each answer, and between tokens."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--answers", default=24, show_default=True, help="By at most so many callers at once; one gives a third.")
@click.option("--bundle", type=click.Path(path_type=Path), help="One more bundle, with a picture to ask about.")
@click.option("--picture", type=click.Path(path_type=Path))
@click.option("--rehearse", is_flag=True, help="Tiny; its figures are not kept.")
def main(threads: int, answers: int, bundle: Path | None, picture: Path | None, rehearse: bool) -> None:
    """Measure, and keep results/callers.json: a few minutes of a machine that does nothing else."""
    width, layers = (64, 2) if rehearse else (_WIDTH, _LAYERS)
    told = {}
    if bundle and picture:
        told["demo"] = measured(bundle, picture, threads, 4 * answers)
        click.echo(f"demo: {told['demo']}")
    for precision in _PRECISIONS:
        with tempfile.TemporaryDirectory() as scratch:
            run = random_run(Path(scratch), "pool", width, layers, precision)
            told[precision] = measured(run.bundle, run.picture, threads, answers)
        click.echo(f"{precision}: {told[precision]}")
    if not rehearse:
        command = f"python -m benchmarks.runtime.callers --threads {threads} --answers {answers}"
        decoder = f"{layers} x {width}, random"
        click.echo(keep("callers", command, decoder=decoder, scale=_SCALE, tokens=_TOKENS, served=told))


def measured(bundle: Path, picture: Path, threads: int, answers: int) -> dict[str, Any]:
    """By how many connections: answers a second, and percentiles of what callers waited for."""
    with server(bundle, threads) as port:
        body = Body(bundle, picture)
        load(port, body, 1, 2)  # whatever is done once
        counts = {connections: max(answers // 3, answers * connections // 8) for connections in _CONNECTIONS}
        return {f"{count} connections": load(port, body, count, min(n, 2 * answers)) for count, n in counts.items()}


@contextmanager
def server(bundle: Path, threads: int) -> Iterator[int]:
    command = [sys.executable, "-m", "mvlm_core.cli", "serve", "--bundle", str(bundle), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--threads", str(threads), "--queue", str(max(_CONNECTIONS))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline().strip().rstrip("/").rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(20)


class Body:
    """Bodies that ask for answers of one length, each with a question of its own."""

    def __init__(self, bundle: Path, picture: Path) -> None:
        url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
        letter = Tokenizer.from_file(str(bundle / "tokenizer.json")).token_to_id(_LETTER)
        self._image = {"type": "image_url", "image_url": {"url": url}}
        self._more = {"model": f"mvlm-{_SCALE}", "stream": True, "max_tokens": _TOKENS, "logit_bias": {letter: 100}}
        self._lock, self._number = threading.Lock(), 0

    def next(self) -> bytes:
        with self._lock:
            self._number += 1
            text = f"{self._number}: what is there, and which colour has it?"
        content = [self._image, {"type": "text", "text": text}]
        return json.dumps(self._more | {"messages": [{"role": "user", "content": content}]}).encode()


def load(port: int, body: Body, connections: int, answers: int) -> dict[str, Any]:
    """So many answers by so many callers, who ask again as soon as they are answered."""
    seen, share = Seen(), max(1, answers // connections)
    callers = [threading.Thread(target=call, args=(port, body, share, seen)) for _ in range(connections)]
    started = time.perf_counter()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    seconds = time.perf_counter() - started
    assert len(seen.first) == share * connections
    return {
        "answers": len(seen.first), "answers_per_s": round(len(seen.first) / seconds, 2),
        "first_token_ms": percentiles(seen.first), "between_tokens_ms": percentiles(seen.between),
    }  # fmt: skip


def percentiles(seconds: list[float]) -> dict[str, float]:
    found = np.percentile(1000 * np.asarray(seconds), [50, 95, 99])
    return dict(zip(("p50", "p95", "p99"), (round(float(ms), 1) for ms in found), strict=True))


def call(port: int, body: Body, times: int, seen: Seen) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    for _ in range(times):
        data, started = body.next(), time.perf_counter()
        connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        last = None
        for line in response:
            if b'"content": "' not in line or b'"content": ""' in line:
                continue
            now = time.perf_counter()
            (seen.first if last is None else seen.between).append(now - (started if last is None else last))
            last = now
    connection.close()


if __name__ == "__main__":
    main()
