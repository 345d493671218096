"""Callers who say nothing, or not all: they keep nobody out, and take no memory. Memory is measured, not timed."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from export.runtime.serve.connections import Roster
from export.runtime.serve.limits import Limits
from tests.support.serving import Served, body, held_steps, serving
from tests.support.tiny import QUESTIONS

ROOT = Path(__file__).parents[2]
QUESTION = QUESTIONS[0]
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SHORT = Limits(head_seconds=0.5, body_seconds=0.5, stalled_seconds=0.5)
MIB = 2**20


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def until_closed(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            data += part
    return data


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HEAD, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea"])
def test_a_head_that_does_not_come_whole_ends_the_connection(runtime, sent):
    with serving(runtime, limits=SHORT) as server, connected(server.port) as connection:
        connection.sendall(sent)
        answer = until_closed(connection)
    assert answer.count(b"HTTP/1.1") == sent.count(b"\r\n\r\n")  # what was whole before is answered


def test_a_head_that_drips_has_one_deadline(runtime):
    with serving(runtime, limits=SHORT) as server, connected(server.port) as connection:
        drips = (connection.sendall(b"X") or time.sleep(0.1) for _ in range(300))
        with pytest.raises(ConnectionError):  # each byte alone would be in time
            all(drip is None for drip in drips)


@pytest.mark.parametrize("length", [b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_body_that_does_not_come_whole_is_refused(runtime, length):
    with serving(runtime, limits=SHORT) as server, connected(server.port) as connection:
        connection.sendall(HEAD + length + b"\r\n")
        answer = until_closed(connection)
        assert b"mvlm_bytes_in_flight 0.0" in server.request("GET", "/metrics")[2]
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"was not whole within 0.5 s: send it faster" in answer


def test_the_rest_of_a_refused_body_is_not_waited_for_either(runtime):
    with serving(runtime, limits=SHORT, token="secret") as server, connected(server.port) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        assert until_closed(connection).startswith(b"HTTP/1.1 401")


def test_a_refused_body_without_end_is_cut(runtime):
    with serving(runtime, limits=Limits(body_bytes=MIB), token="secret") as server:
        with connected(server.port) as connection:
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            with pytest.raises(ConnectionError):
                connection.sendall(1000 * (b"10000\r\n" + b"x" * 65536 + b"\r\n"))
        assert server.request("GET", "/health")[0] == 200


def test_a_caller_who_does_not_read_is_cut(runtime, picture, monkeypatch):
    """The answer is written to a connection whose other end takes nothing."""
    from export.runtime.serve import faces

    event = faces.event
    monkeypatch.setattr(faces, "event", lambda value, name=None: event(value | {"padding": "x" * 2 * MIB}, name))
    with serving(runtime, limits=SHORT) as server, connected(server.port) as connection:
        data = json.dumps(body(picture, QUESTION, "mvlm-1", max_tokens=20, stream=True)).encode()
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        for _ in range(100):
            if b"mvlm_connections 1.0" in server.request("GET", "/metrics")[2]:
                break
            time.sleep(0.05)
        assert b"mvlm_connections 1.0" in server.request("GET", "/metrics")[2]
        assert b"mvlm_bytes_in_flight 0.0" in server.request("GET", "/metrics")[2]


def test_idle_connections_give_way_to_new_ones(runtime, picture):
    with serving(runtime, limits=Limits(connections=8)) as server, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(server.port)) for _ in range(40)]
        assert server.chat(body(picture, QUESTION, "mvlm-1", max_tokens=1))[0] == 200
        assert until_closed(idle[0]) == b""


def test_connections_that_are_answered_do_not_give_way(runtime, picture, monkeypatch):
    chat, answers = body(picture, QUESTION, "mvlm-9", max_tokens=2), []
    with serving(runtime, limits=Limits(connections=4, together=1)) as server, contextlib.ExitStack() as stack:
        callers = [threading.Thread(target=lambda: answers.append(server.chat(chat)[0])) for _ in range(4)]
        with held_steps(monkeypatch) as begun:
            callers[0].start()
            assert begun.wait(60)
            for caller in callers[1:]:
                caller.start()
            until = time.monotonic() + 60
            while b"mvlm_waiting 3.0" not in server.runtime_metrics():
                assert time.monotonic() < until
                time.sleep(0.005)
            refused = [until_closed(stack.enter_context(connected(server.port))) for _ in range(3)]
        for caller in callers:
            caller.join()
    assert answers == [200] * 4
    for answer in refused:
        head, _, data = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert b"Content-Length: %d" % len(data) in head
        assert json.loads(data)["error"]["type"] == "server_error"


def test_the_roster_leaves_descriptors_for_others():
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert Roster(Limits(connections=10**9)).most < allowed
    assert Roster(Limits(connections=7)).most == 7


@pytest.fixture(scope="module")
def process(made):
    """A server in a process of its own, with few descriptors: its memory is its own, and what it prints."""
    command = [
        sys.executable,
        "-m",
        "mvlm_core.cli",
        "serve",
        "--bundle",
        str(made.bundle),
        "--threads",
        "1",
        "--port",
        "0",
    ]
    limited = ["bash", "-c", 'ulimit -n 256; exec "$@"', "bash", *command]
    server = subprocess.Popen(limited, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    port = int(server.stdout.readline().strip().rstrip("/").rpartition(":")[2])
    yield Served(port, None), server.pid
    server.terminate()
    _, said = server.communicate(timeout=30)
    assert said == ""


def memory_mib(pid: int, what: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(what)) / 1024


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HEAD + b"Content-Length: 1000000\r\n\r\n{"])
def test_300_idle_connections_keep_nobody_out(process, picture, sent):
    served, pid = process
    chat = body(picture, QUESTION, "mvlm-1", max_tokens=1)
    assert served.chat(chat)[0] == 200
    before = memory_mib(pid, "VmRSS")
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            connection = stack.enter_context(connected(served.port))
            with contextlib.suppress(ConnectionError):
                connection.sendall(sent)
        for _ in range(5):
            assert served.chat(chat)[0] in (200, 429)  # half bodies hold their room until their deadline
        assert served.request("GET", "/health")[0] == 200
        assert memory_mib(pid, "VmRSS") - before < 60


def test_100_large_bodies_take_no_more_memory_than_a_few(process):
    """Each is refused at once or answered; what the server holds of all together is bounded."""
    served, pid = process
    limits = Limits()
    large = json.dumps(body(b"x" * (limits.picture_bytes - 1000), QUESTION, "mvlm-1", max_tokens=1)).encode()
    assert served.chat(large)[0] == 400  # no picture, and found out in the worker, after all of it was read
    before, statuses = memory_mib(pid, "VmRSS"), []

    def ask() -> None:
        try:
            statuses.append(served.chat(large)[0])
        except ConnectionError:
            statuses.append("cut")

    callers = [threading.Thread(target=ask) for _ in range(100)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(statuses) == 100
    assert set(statuses) == {400, 429}
    taken = memory_mib(pid, "VmHWM") - before
    assert taken < 4 * limits.bytes_in_flight / MIB
    assert served.request("GET", "/health")[0] == 200
