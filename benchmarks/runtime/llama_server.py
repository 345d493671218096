"""llama.cpp's server as a peer of `callers.py`: the same decoder as GGUF, asked with the same ids."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.decode.llama import write_gguf
from mvlm_core.modeling.model import MvlmForConditionalGeneration

_SLOTS, _POSITIONS, _TOKENS, _START_S = 8, 512, 24, 60


class LlamaServer:
    """`llama-server` with as many slots as `mvlm serve` writes answers together."""

    path = "/completion"

    def __init__(self, port: int, ids: Any) -> None:
        self.port, self._ids = port, ids

    def body(self, text: str) -> bytes:
        asked = {
            "prompt": self._ids.of(text), "n_predict": _TOKENS, "stream": True, "temperature": 0, "ignore_eos": True,
            "logit_bias": [[self._ids.letter, 100]],
        }  # fmt: skip
        return json.dumps(asked).encode()

    @classmethod
    @contextmanager
    def of(cls, program: Path, run: Path, file: Path, ids: Any, threads: int) -> Iterator[LlamaServer]:
        """Serve the language model of a run in the precision that the file's name says: F32 or Q4_0."""
        model: Any = MvlmForConditionalGeneration.from_pretrained(run)
        write_gguf(model.language_model, file, file.stem, tokenizer=run / "tokenizer.json")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["--port", port, "-np", _SLOTS, "-c", _SLOTS * _POSITIONS, "-t", threads, "-tb", threads]
        process = subprocess.Popen(
            [str(program), "-m", str(file), *map(str, options), "--no-warmup"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait(port, process)
            yield cls(port, ids)
        finally:
            process.terminate()
            process.wait(20)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"llama-server does not listen ({process.poll()})")
