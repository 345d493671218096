"""Many callers, callers who go, faults of our own, and what is left behind."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from export.runtime.backends.onnx import Decoder
from export.runtime.serve.limits import Limits
from export.runtime.serve.worker import Job, Worker
from tests.support.serving import Served, body, data_url, held_steps, serving
from tests.support.tiny import QUESTIONS

ROOT = Path(__file__).parents[2]
QUESTION = QUESTIONS[0]


class Panic(BaseException):
    """As the tokenizers' library raises when Rust panics: no `Exception`."""


class Deaf:
    """Hears nothing of a worker."""

    def fault(self, error):
        pass

    first_token = next_token = fault


def test_a_thousand_requests_over_32_connections(served, runtime, made):
    """Every answer is the serial one; none is lost. Those that find the queue full are told, and ask again."""
    kinds = list(itertools.product(range(5), QUESTIONS[:2], (1, 4, 9)))
    bodies = [
        json.dumps(body(made.picture(i).read_bytes(), question, f"mvlm-{m}", max_tokens=3)).encode()
        for i, question, m in kinds
    ]
    wanted = [runtime.ask(made.picture(i), question, m, max_new_tokens=3).text for i, question, m in kinds]
    numbers, lock = iter(range(1000)), threading.Lock()
    got: dict[int, str] = {}
    busy = 0

    def ask_until_done() -> None:
        nonlocal busy
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            while True:
                connection.request("POST", "/v1/chat/completions", bodies[number % len(bodies)],
                                   {"Content-Type": "application/json"})  # fmt: skip
                response = connection.getresponse()
                value = json.loads(response.read())
                if response.status != 429:
                    break
                assert response.headers["Retry-After"] == "1"
                busy += 1
                time.sleep(0.02)
            got[number] = value["choices"][0]["message"]["content"]
        connection.close()

    threads = [threading.Thread(target=ask_until_done) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1000
    assert all(got[number] == wanted[number % len(wanted)] for number in got)
    assert busy > 0  # 32 callers do not fit a queue of 16: the limit was reached, and held


@contextmanager
def full(server, picture, monkeypatch):
    """One question is answered, and one waits: no other finds room until the context is left, and both are answered."""
    chat = body(picture, QUESTION, "mvlm-9", max_tokens=2)
    with ThreadPoolExecutor(2) as pool:
        with held_steps(monkeypatch) as begun:
            first = pool.submit(server.chat, chat)
            assert begun.wait(60)
            second = pool.submit(server.chat, chat)
            while b"mvlm_waiting 1.0" not in server.runtime_metrics():
                assert not second.done()
                time.sleep(0.002)
            yield
        assert [answer.result()[0] for answer in (first, second)] == [200, 200]


def test_a_full_queue_is_refused_at_once(runtime, picture, monkeypatch):
    with serving(runtime, limits=Limits(queue=1, together=1)) as server, full(server, picture, monkeypatch):
        assert [server.chat(body(picture, QUESTION))[0] for _ in range(4)] == [429] * 4


@pytest.mark.parametrize("stream", [True, False])
def test_when_the_caller_goes_work_stops_within_a_token(served, picture, endless, slow, stream):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    chat = body(picture, QUESTION, "mvlm-9", max_tokens=300, stream=stream)
    connection.request("POST", "/v1/chat/completions", json.dumps(chat), {"Content-Type": "application/json"})
    if stream:
        connection.getresponse().read(300)
    while len(slow) < 5:
        time.sleep(0.005)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    written = -1
    while written != len(slow):
        written = len(slow)
        time.sleep(0.4)
    assert written < 200  # of 300, however slow the news of it is
    assert served.chat(body(picture, QUESTION, "mvlm-9", max_tokens=1))[0] == 200


def test_an_answer_takes_no_longer_than_is_allowed(runtime, picture, endless, slow):
    with serving(runtime, limits=Limits(seconds=0.3)) as server:
        status, answer = server.chat(body(picture, QUESTION, "mvlm-9", max_tokens=300))
        assert status == 503
        assert "no answer within 0.3 s" in answer["error"]["message"]
        assert len(slow) < 300
        stream = server.request(
            "POST", "/v1/chat/completions", body(picture, QUESTION, "mvlm-9", max_tokens=300, stream=True)
        )
        assert stream[0] == 200
        assert b'"code": "timeout"' in stream[2]
        assert b"[DONE]" not in stream[2]


@pytest.mark.parametrize("fault", [ZeroDivisionError, Panic, SystemExit])
def test_a_fault_of_ours_ends_one_request_and_no_more(runtime, picture, monkeypatch, tmp_path, fault):
    def fails(*_):
        raise fault("deep inside")

    log = tmp_path / "log.jsonl"
    with serving(runtime, log=log) as server:
        with monkeypatch.context() as broken:
            broken.setattr(Decoder, "step", fails)
            status, answer = server.chat(body(picture, QUESTION, "mvlm-1", max_tokens=1))
        assert (status, answer["error"]["code"], answer["error"]["type"]) == (500, "internal", "server_error")
        assert fault.__name__ in answer["error"]["message"]
        assert server.chat(body(picture, QUESTION, "mvlm-1", max_tokens=1))[0] == 200
        assert b"mvlm_faults_total 1.0" in server.request("GET", "/metrics")[2]
    traces = [line["traceback"] for line in map(json.loads, log.read_text().splitlines()) if "traceback" in line]
    assert len(traces) == 1
    assert "deep inside" in traces[0]
    assert "in fails" in traces[0]


def test_a_fault_while_a_body_is_read_reaches_stderr_where_there_is_no_log(runtime, picture, monkeypatch, capfd):
    from export.runtime.serve import service

    def fails(*_):
        raise Panic("in the parser")

    with serving(runtime) as server:
        monkeypatch.setattr(service, "read_chat", fails)
        status, answer = server.chat(body(picture, QUESTION, "mvlm-1", max_tokens=1))
    assert (status, answer["error"]["type"]) == (500, "server_error")
    said = capfd.readouterr().err
    assert said.count("Traceback") == 1
    assert "Panic: in the parser" in said


def test_health_looks_at_the_thread(runtime, picture, endless, slow, monkeypatch):
    from export.runtime.serve import service

    with serving(runtime) as server:
        assert server.request("GET", "/health")[0] == 200
        with monkeypatch.context() as stuck:
            stuck.setattr(service.Worker, "overdue_s", property(lambda worker: 31.0))
            assert server.request("GET", "/health")[0] == 503
        stuck_thread = threading.Thread(target=lambda: None)
        with monkeypatch.context() as dead:
            dead.setattr(service.Worker, "alive", property(lambda worker: stuck_thread.is_alive()))
            status, _, data = server.request("GET", "/health")
            assert (status, json.loads(data)["status"]) == (503, "the worker has ended")


def test_work_that_does_not_stop_is_overdue(runtime):
    async def leave() -> None:
        worker, held, begun = Worker(runtime, Limits(queue=4), Deaf()), threading.Event(), threading.Event()
        job = Job(lambda job: (begun.set(), held.wait(5)) and "done")
        worker.submit(job)
        assert begun.wait(5)
        assert worker.overdue_s == 0
        job.stop()
        await asyncio.sleep(0.05)
        assert worker.overdue_s >= 0.05
        held.set()
        worker.close()
        assert (worker.overdue_s, worker.alive) == (0, False)

    asyncio.run(leave())


def test_a_full_queue_is_told_before_the_body_is_read(runtime, picture, monkeypatch):
    with serving(runtime, limits=Limits(queue=1, together=1)) as server, full(server, picture, monkeypatch):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: 20000000\r\n\r\n")
            told = b""
            while b"}}" not in told:
                told += connection.recv(65536)
        assert told.startswith(b"HTTP/1.1 429")
        assert b"1 questions wait already" in told
        assert b'"type":"rate_limit_error"' in told


def test_bodies_that_find_no_room_are_told_before_they_are_read(runtime, picture):
    with serving(runtime, limits=Limits(bytes_in_flight=10_000)) as server:
        assert server.chat(b" " * 10_001)[0] == 429
        small = json.dumps(body(picture, QUESTION, "mvlm-1", max_tokens=1)).encode()
        assert len(small) < 10_000
        assert server.chat(small)[0] == 200


def test_choosing_at_many_prices_ends_when_time_is_up(runtime, picture, monkeypatch):
    choose, chosen = runtime.router.choose, []

    def slowly(*of):
        time.sleep(0.02)
        chosen.append(1)
        return choose(*of)

    monkeypatch.setattr(runtime.router, "choose", slowly)
    asked = {"picture": data_url(picture), "question": QUESTION, "prices": [0.1] * 256}
    with serving(runtime, limits=Limits(seconds=0.2)) as server:
        status, _, data = server.request("POST", "/v1/mvlm/choose", asked)
        assert (status, json.loads(data)["error"]["code"]) == (503, "timeout")
        assert server.request("GET", "/health")[0] == 200
    assert len(chosen) < 60


def test_a_job_whose_caller_left_is_not_begun(runtime):
    async def leave() -> None:
        worker = Worker(runtime, Limits(queue=4, together=1), Deaf())
        held, left = threading.Event(), []
        first = Job(lambda job: held.wait(5) and "done")
        second = Job(lambda job: left.append(1) or "done")
        worker.submit(first)
        worker.submit(second)
        second.stop()
        held.set()
        await first.next()
        worker.close()
        assert left == []

    asyncio.run(leave())


# What is left behind


def test_nothing_is_left_behind(runtime, picture):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    for warm in (True, False):
        before = descriptors(), threading.active_count()
        with serving(runtime) as server:
            for number in range(10):
                chat = body(picture, QUESTION, "mvlm-4", max_tokens=2, stream=number % 2 == 0)
                assert server.request("POST", "/v1/chat/completions", chat)[0] == 200
        until = time.monotonic() + 5  # what earlier tests left may close meanwhile
        while not warm and descriptors() > before[0] and time.monotonic() < until:
            time.sleep(0.05)
        if not warm:
            assert descriptors() <= before[0]
            assert threading.active_count() <= before[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_no_reason_not_to_answer(runtime, picture, capfd):
    with serving(runtime, log=Path("/dev/full")) as server:
        for _ in range(3):
            assert server.chat(body(picture, QUESTION, max_tokens=1))[0] == 200
        assert b"mvlm_log_lines_lost_total 3.0" in server.request("GET", "/metrics")[2]
    assert capfd.readouterr().err.count("cannot be written (No space left on device); serving on") == 1


def test_the_log_says_what_happened_and_not_what_was_asked(runtime, picture, tmp_path):
    log = tmp_path / "log.jsonl"
    with serving(runtime, log=log) as server:
        server.chat(body(picture, QUESTION, "mvlm-9", max_tokens=1))
        server.chat(body(b"x", "a secret"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["scale"], line["code"]) for line in lines] == [(9, None), (None, "bad-picture")]
    assert "secret" not in log.read_text()


def test_killed_and_started_again_it_serves_at_once(made, picture):
    """The verb itself, in a process of its own."""
    port = None
    for sign in (signal.SIGKILL, signal.SIGINT):
        command = [sys.executable, "-m", "mvlm_core.cli", "serve", "--bundle", str(made.bundle), "--threads", "1"]
        process = subprocess.Popen([*command, "--port", str(port or 0)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        line = process.stdout.readline()
        port = int(line.strip().rstrip("/").rpartition(":")[2])
        assert line.startswith("open http://127.0.0.1:")
        served = Served(port, None)
        assert served.chat(body(picture, QUESTION, max_tokens=1))[0] == 200
        process.send_signal(sign)
        assert process.wait(20) in (-signal.SIGKILL, 0)
        process.stdout.close()


def test_a_port_that_is_taken(made, served, mvlm):
    refused = mvlm("serve", "--bundle", made.bundle, "--port", served.port)
    assert refused.exit_code == 2
    assert "is taken: name another with --port" in refused.output
