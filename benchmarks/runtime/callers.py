"""Many callers at one server: answers a second, and milliseconds to the first token and between tokens, as callers see.

`python -m benchmarks.runtime.callers` serves a random decoder that is large enough that tokens cost, in several
precisions, and with `--llama-server` llama.cpp's server with the same decoder and prompts, all in one run, in turns;
with `--demo` the demo's bundle too, with a picture. Each caller streams one answer after another, each to a question of
its own; a bias makes every answer as long as it may be, with a piece of text for every token.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np
from tokenizers import Tokenizer

from benchmarks.machine import keep
from benchmarks.runtime.llama_server import LlamaServer
from benchmarks.runtime.random_models import RandomRun, random_run, write_precision
from benchmarks.runtime.served import CONNECTIONS, cores_of_others, load, percentiles, post, server
from export.runtime.chat_template import ChatTemplate
from export.runtime.chat_text import ChatText
from export.runtime.manifest import read_manifest

_WIDTH, _LAYERS, _SCALE, _TOKENS = 896, 24, 36, 24
_PRECISIONS = ("float32", "int4", "prefill=int8,decode=int4")
_QUESTION = "what colour is the star, how many dots are there, and is it day or night?"
_LETTER = "a"


class Peer(Protocol):
    """A server that listens, and how it is asked."""

    port: int
    path: str

    def body(self, text: str) -> bytes: ...


@dataclass
class Seen:
    """What a caller saw of an answer: seconds to its first token and between tokens, and the server's own stages."""

    first: float = 0.0
    between: list[float] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)


class Own:
    """`mvlm serve`, asked with a picture or without."""

    path = "/v1/chat/completions"

    def __init__(self, port: int, bundle: Path, picture: Path | None = None) -> None:
        self.port = port
        letter = Tokenizer.from_file(str(bundle / "tokenizer.json")).token_to_id(_LETTER)
        self._more = {"model": f"mvlm-{_SCALE}", "stream": True, "max_tokens": _TOKENS, "logit_bias": {letter: 100}}
        self._picture: list[dict[str, Any]] = []
        if picture:
            url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
            self._picture = [{"type": "image_url", "image_url": {"url": url}}]

    def body(self, text: str) -> bytes:
        content = [*self._picture, {"type": "text", "text": text}]
        return json.dumps(self._more | {"messages": [{"role": "user", "content": content}]}).encode()


class Ids:
    """What a bundle's chat template and tokenizer make of a question without a picture."""

    def __init__(self, bundle: Path) -> None:
        manifest = read_manifest(bundle)
        assert manifest.chat
        text = manifest.path(manifest.chat.template).read_text(encoding="utf-8")
        self._template = ChatTemplate(text, manifest.chat.special_tokens)
        tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        self._text, self.letter = ChatText(tokenizer), tokenizer.token_to_id(_LETTER)

    def of(self, text: str) -> list[int]:
        return self._text.ids(self._template.render([{"role": "user", "content": [{"type": "text", "text": text}]}]))


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--answers", default=24, show_default=True, help="By 8 callers; one gives a third, 32 give twice as many."
)
@click.option("--demo", type=click.Path(path_type=Path), help="The demo's folder, whose bundle is served too.")
@click.option("--llama-server", "llama", type=click.Path(path_type=Path), help="The program, for a peer.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(_PRECISIONS), default=_PRECISIONS)
@click.option("--rehearse", is_flag=True, help="Tiny; its figures are not kept.")
def main(
    threads: int, answers: int, demo: Path | None, llama: Path | None, precisions: tuple[str, ...], rehearse: bool
) -> None:
    """Measure, and keep results/callers.json: a few minutes of a machine that does nothing else."""
    width, layers = (128, 2) if rehearse else (_WIDTH, _LAYERS)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as held:
        run = random_run(Path(scratch) / "run", "pool", width, layers, precisions[0], language="llama")
        ids, absent = Ids(run.bundle), {name: "not asked for" for name in _PRECISIONS if name not in precisions}
        absent |= {} if llama else {"llama-server": "not named"}
        peers: dict[str, Peer] = dict(_own(held, run, precisions, threads))
        if llama:
            peers |= _llama(held, llama, run, ids, threads, absent)
        if demo:
            picture = next(iter(sorted((demo / "rows").rglob("*.png"))))
            listening = held.enter_context(server(demo / "bundle", threads))
            peers["demo"] = Own(listening.port, demo / "bundle", picture)
        told, others = measured(peers, answers)
    facts: dict[str, Any] = {
        "decoder": f"{layers} x {width}, random", "prompt_tokens": len(ids.of(f"10: {_QUESTION}")),
        "demo_scale": _SCALE, "tokens": _TOKENS, "cores_of_others": others, "absent": absent, "served": told,
    }  # fmt: skip
    if not rehearse:
        given = (" --demo demo" if demo else "") + (" --llama-server llama-server" if llama else "")
        given += "".join(f" --precision {name}" for name in precisions if precisions != _PRECISIONS)
        command = f"python -m benchmarks.runtime.callers --threads {threads} --answers {answers}{given}"
        click.echo(keep("callers", command, **facts))


def _own(held: ExitStack, run: RandomRun, precisions: Sequence[str], threads: int) -> Iterator[tuple[str, Own]]:
    """A server for each precision of a run."""
    for number, precision in enumerate(precisions):
        bundle = run.bundle if number == 0 else run.bundle.with_name(f"bundle-{number}")
        if number:
            write_precision(run, precision, bundle)
        yield precision, Own(held.enter_context(server(bundle, threads)).port, bundle)


def _llama(
    held: ExitStack, program: Path, run: RandomRun, ids: Ids, threads: int, absent: dict[str, str]
) -> dict[str, Peer]:
    """llama.cpp's server in two precisions; one that cannot is named in `absent`, and does not end the others' run."""
    peers: dict[str, Peer] = {}
    for name in ("F32", "Q4_0"):
        own = "float32" if name == "F32" else "int4"
        if own in absent:
            absent[f"llama-server {name}"] = f"beside {own}, which is absent"
            continue
        try:
            served = LlamaServer.of(program, run.folder, run.folder.with_name(f"{name}.gguf"), ids, threads)
            peer = held.enter_context(served)
            load(peer.port, lambda connection, peer=peer: ask(connection, peer, 0), 1, 1)
        except Exception as error:
            absent[f"llama-server {name}"] = f"{type(error).__name__}: {error}"[:200]
            click.echo(f"llama-server {name} is left out: {error!r}")
            continue
        peers[f"llama-server {name}"] = peer
    return peers


def measured(peers: dict[str, Peer], answers: int) -> tuple[dict[str, Any], list[float]]:
    """By peer and number of connections what callers saw, and how busy others kept the machine before each turn."""
    told: dict[str, dict[str, Any]] = defaultdict(dict)
    others = []
    numbers = itertools.count()
    for peer in peers.values():
        load(peer.port, lambda connection, peer=peer: ask(connection, peer, next(numbers)), 1, 2)  # what is done once
    for connections in CONNECTIONS:
        count = {1: max(2, answers // 3), 8: answers}.get(connections, 2 * answers)
        for name, peer in peers.items():
            others.append(cores_of_others())
            seen, seconds = load(
                peer.port, lambda connection, peer=peer: ask(connection, peer, next(numbers)), connections, count
            )
            told[name][f"{connections} connections"] = figures(seen, seconds)
            click.echo(f"{name}, {connections}: {told[name][f'{connections} connections']}")
    return dict(told), others


def figures(seen: list[Seen], seconds: float) -> dict[str, Any]:
    stages = {stage for one in seen for stage in one.stages}
    return {
        "answers": len(seen), "answers_per_s": round(len(seen) / seconds, 2),
        "first_token_ms": percentiles([1000 * one.first for one in seen]),
        "between_tokens_ms": percentiles([1000 * wait for one in seen for wait in one.between]),
        "stages_ms": {
            stage: round(float(np.mean([one.stages.get(stage, 0.0) for one in seen])), 1) for stage in sorted(stages)
        },
    }  # fmt: skip


def ask(connection: http.client.HTTPConnection, peer: Peer, number: int) -> Seen:
    """One answer. A piece of text is a token: both servers put it under `content`."""
    body, seen, last, started = peer.body(f"{number}: {_QUESTION}"), Seen(), None, time.perf_counter()
    for line in post(connection, peer.path, body):
        if b'"mvlm": ' in line:
            seen.stages = json.loads(line.removeprefix(b"data: "))["mvlm"]["timings"]
        if b'"content":' not in line or b'"content": ""' in line or b'"content":""' in line:
            continue
        now = time.perf_counter()
        if last is None:
            seen.first = now - started
        else:
            seen.between.append(now - last)
        last = now
    assert last is not None
    return seen


if __name__ == "__main__":
    main()
