"""Everything at once at one server: conversations, questions, texts, malformed and giant bodies, callers who leave.

`python -m benchmarks.runtime.mixed` sends 2,048 over 32 connections to a server of its own process, whose model is
tiny, and keeps whether any answer was lost or differs from what its caller gets alone, and what memory and threads
were left.
"""

from __future__ import annotations

import base64
import http.client
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import keep
from benchmarks.runtime.random_models import random_run
from benchmarks.runtime.served import Listening, server
from benchmarks.tiny_models import QUESTIONS, drawn_picture

LEAVES = "leaves"
_PATH, _HEADERS = "/v1/chat/completions", {"Content-Type": "application/json"}
_TOKENS, _SCALE, _PARTS = 3, 9, 4
Kinds = Mapping[str, Sequence[dict[str, Any]]]


@dataclass
class Seen:
    """What came back: the kind of each request, its number in that kind, the status and the body; and what did not."""

    got: list[tuple[str, int, int, dict[str, Any]]] = field(default_factory=list)
    left: int = 0
    lost: list[str] = field(default_factory=list)

    def differing(self, alone: Mapping[str, Sequence[tuple[int, dict[str, Any]]]]) -> list[str]:
        """Answers that are not those that the same requests got alone."""
        return [
            f"{kind} {at}: {status} {answer}"
            for kind, at, status, answer in self.got
            if (status, _essence(answer)) != (alone[kind][at][0], _essence(alone[kind][at][1]))
        ]


def _essence(answer: dict[str, Any]) -> Any:
    return answer.get("choices") or answer["error"]


def kinds(pictures: Sequence[bytes], model: str) -> Kinds:
    """Bodies by what they are."""

    def shows(number: int, text: str) -> dict[str, Any]:
        url = "data:image/png;base64," + base64.b64encode(pictures[number % len(pictures)]).decode()
        return {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
        }

    def body(*messages: Any) -> dict[str, Any]:
        return {"model": model, "messages": list(messages), "max_tokens": _TOKENS}

    def words(text: str, role: str = "user") -> dict[str, Any]:
        return {"role": role, "content": text}

    return {
        "conversation": [
            body(
                words("You watch a street, and you are brief.", "system"), shows(number % 3, QUESTIONS[0]),
                words(f"red {number % 2}", "assistant"), words(QUESTIONS[number % 4]),
            )
            for number in range(6)
        ],
        "question": [body(shows(number, QUESTIONS[number % 4])) for number in range(4)],
        "text": [body(words(f"hi {number}")) for number in range(3)],
        "malformed": [body({"role": "user", "content": 3}), body(words("hi")) | {"model": "none"}],
        "giant": [body(words("what? " * 20_000))],
    }  # fmt: skip


def alone(port: int, bodies: Kinds) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """What each body gets when nobody else asks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    found = {kind: [_ask(connection, body) for body in some] for kind, some in bodies.items()}
    connection.close()
    return found


def _ask(connection: http.client.HTTPConnection, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    connection.request("POST", _PATH, json.dumps(body), _HEADERS)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def mixed(port: int, bodies: Kinds, requests: int, connections: int, seed: int = 0) -> Seen:
    """So many requests by so many callers at once, drawn by `seed`; conversations twice as often as the others."""
    seen = Seen()

    def call(number: int) -> None:
        chance = random.Random(seed * connections + number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for _ in range(requests // connections):
            kind = chance.choice([*bodies, "conversation", LEAVES])
            some = bodies["question" if kind == LEAVES else kind]
            at = chance.randrange(len(some))
            try:
                if kind == LEAVES:
                    connection.request("POST", _PATH, json.dumps(some[at] | {"stream": True}), _HEADERS)
                    connection.close()
                    seen.left += 1
                else:
                    seen.got.append((kind, at, *_ask(connection, some[at])))
            except Exception as error:  # whatever it is, an answer is lost
                seen.lost.append(f"{kind} {at}: {error!r}")
                connection.close()
        connection.close()

    callers = [threading.Thread(target=call, args=(number,)) for number in range(connections)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return seen


@click.command()
@click.option("--requests", default=2048, show_default=True)
@click.option("--connections", default=32, show_default=True)
@click.option("--rehearse", is_flag=True, help="A few; nothing is kept.")
def main(requests: int, connections: int, rehearse: bool) -> None:
    """Send them in four parts, and keep results/mixed.json."""
    requests = 16 * connections if rehearse else requests
    pictures = [drawn_picture(number) for number in range(4)]
    with tempfile.TemporaryDirectory() as scratch:
        run = random_run(Path(scratch) / "run", "pool", 64, 2)
        files = [Path(scratch) / f"{number}.png" for number in range(4)]
        for picture, file in zip(pictures, files, strict=True):
            picture.save(file)
        bodies = kinds([file.read_bytes() for file in files], f"mvlm-{_SCALE}")
        with server(run.bundle, threads=1, queue=4 * connections) as listening:  # callers who left wait too
            told = _measured(listening, bodies, requests, connections)
    click.echo(json.dumps(told))
    if not rehearse:
        command = f"python -m benchmarks.runtime.mixed --requests {requests} --connections {connections}"
        click.echo(keep("mixed", command, connections=connections, **told))


def _measured(listening: Listening, bodies: Kinds, requests: int, connections: int) -> dict[str, Any]:
    """What came of all parts, and what the server's process held before them, and after each."""
    wanted = alone(listening.port, bodies)
    mixed(listening.port, bodies, 8 * connections, connections, seed=_PARTS)  # whatever is made once is made
    parts, held = [], [_held(listening)]
    for part in range(_PARTS):
        parts.append(mixed(listening.port, bodies, requests // _PARTS, connections, seed=part))
        held.append(_held(listening))
    answered = Counter(kind for seen in parts for kind, *_ in seen.got)
    return {
        "answered": dict(answered) | {LEAVES: sum(seen.left for seen in parts)},
        "lost": sum(len(seen.lost) for seen in parts),
        "differ": sum(len(seen.differing(wanted)) for seen in parts),
        "memory_mib": [one["memory_mib"] for one in held], "threads": [one["threads"] for one in held],
    }  # fmt: skip


def _held(listening: Listening, settle_s: float = 2.0) -> dict[str, int]:
    """Memory and threads of the server's process once it has let go of what was under way."""
    time.sleep(settle_s)
    lines = (line.split() for line in Path(f"/proc/{listening.pid}/status").read_text().splitlines())
    found = {line[0]: line[1] for line in lines if len(line) > 1}
    return {"memory_mib": int(found["VmRSS:"]) // 1024, "threads": int(found["Threads:"])}


if __name__ == "__main__":
    main()
