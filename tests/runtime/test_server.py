"""The server through its own socket: OpenAI's client, limits, tokens, callers who go, and what is left behind."""

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
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.runtime import MvlmError, Runtime
from export.runtime.backends.onnx import Decoder
from export.runtime.serve.chat import Limits, model_names, read_chat
from export.runtime.serve.server import Settings, make_server
from export.runtime.serve.worker import Job, Worker
from tests.support.bundles import Made, pool_bundle
from tests.support.serving import Served, body, data_url, serving
from tests.support.tiny import QUESTIONS, SCALES

ROOT = Path(__file__).parents[2]
QUESTION = QUESTIONS[0]


@pytest.fixture(scope="module")
def made() -> Made:
    return pool_bundle()


@pytest.fixture(scope="module")
def runtime(made) -> Runtime:
    return Runtime.load(made.bundle, threads=1)


@pytest.fixture(scope="module")
def served(runtime):
    with serving(runtime) as server:
        yield server


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def picture(made) -> bytes:
    return made.picture(0).read_bytes()


@pytest.fixture
def endless(runtime, monkeypatch):
    """No token ends an answer, so that one lasts as long as it may."""
    monkeypatch.setattr(runtime, "manifest", replace(runtime.manifest, stop_ids=frozenset()))


# OpenAI's client


def test_models(client):
    assert [model.id for model in client.models.list()] == ["mvlm-auto", *(f"mvlm-{m}" for m in SCALES)]


@pytest.mark.parametrize("scale", ["auto", 1, 36])
def test_an_answer(client, runtime, picture, scale):
    chat = body(picture, QUESTION, f"mvlm-{scale}", max_tokens=6)
    answered = client.chat.completions.create(**chat)
    answer = runtime.ask(picture, QUESTION, scale, max_new_tokens=6)
    assert answered.choices[0].message.content == answer.text
    assert answered.choices[0].finish_reason == "length"
    assert answered.mvlm["num_visual_tokens"] == answer.num_visual_tokens
    assert answered.mvlm["reason"] == answer.reason
    ids = runtime.prompt.ids(QUESTION, answer.num_visual_tokens, runtime.manifest.image_token_id)
    assert (answered.usage.prompt_tokens, answered.usage.completion_tokens) == (len(ids), 6)


def test_a_stream(client, runtime, picture):
    chat = body(picture, QUESTION, "mvlm-9", max_tokens=12, stream=True, stream_options={"include_usage": True})
    chunks = list(client.chat.completions.create(**chat))
    answer = runtime.ask(picture, QUESTION, 9, max_new_tokens=12)
    text = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(text) == answer.text
    assert sum(map(bool, text)) > 2
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-2].mvlm["num_visual_tokens"] == 9
    assert chunks[-1].usage.completion_tokens == 12


def test_the_scale_and_terms_in_the_body(client, runtime, picture):
    for ours, scale in (({"scale": 36}, 36), ({"price": 1000}, 1), ({"cap": 4, "price": 0}, None)):
        chat = body(picture, QUESTION, max_tokens=1)
        answered = client.chat.completions.create(**chat, extra_body={"mvlm": ours})
        assert answered.mvlm["num_visual_tokens"] in ([scale] if scale else [1, 4])
    picked = client.chat.completions.create(
        **body(picture, QUESTION), extra_body={"mvlm": {"choices": ["red", "blue"]}}
    )
    assert picked.choices[0].message.content in ("red", "blue")
    assert sum(picked.mvlm["choices"].values()) == pytest.approx(1)


def test_openais_own_options(client, runtime, picture):
    def ask(**options) -> str:
        return client.chat.completions.create(**body(picture, QUESTION, "mvlm-9"), **options).choices[0].message.content

    whole = ask(max_completion_tokens=16)
    assert ask(max_tokens=16, stop=whole[3:6]) == whole[: whole.index(whole[3:6])].strip()
    drawn = {ask(temperature=1.5, seed=seed, max_tokens=8) for seed in (1, 1, 2)}
    assert len(drawn) == 2
    assert ask(max_tokens=16, n=1, user="me", presence_penalty=0, tools=[], logprobs=False) == whole


def test_errors_are_openais(client, picture):
    with pytest.raises(openai.NotFoundError, match="no model 'mvlm-7'"):
        client.chat.completions.create(**body(picture, QUESTION, "mvlm-7"))
    with pytest.raises(openai.BadRequestError, match="cannot be read as a picture"):
        client.chat.completions.create(**body(b"no picture", QUESTION))
    with pytest.raises(openai.BadRequestError, match="cannot be read as a picture"):
        client.chat.completions.create(**body(b"no picture", QUESTION), stream=True)


# Bodies that are refused


def changed(chat: dict, **change) -> dict:
    return {name: value for name, value in (chat | change).items() if value is not ...}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n": 2}, "'n' '2' is not offered"),
        ({"n": True}, None),
        ({"tools": [{"type": "function"}]}, "'tools'"),
        ({"response_format": {"type": "json_object"}}, "'response_format'"),
        ({"logprobs": True}, "'logprobs'"),
        ({"nonsense": 1}, "'nonsense' '1'"),
        ({"mvlm": {"scale": "many"}}, "mvlm.scale is 'many'"),
        ({"mvlm": {"scale": 7}}, "no scale 7"),
        ({"mvlm": {"size": 7}}, "mvlm takes"),
        ({"mvlm": [1]}, "mvlm takes"),
        ({"mvlm": {"price": -1}}, "the price is -1"),
        ({"mvlm": {"deadline_ms": 1}}, "mvlm bench"),
        ({"model": "mvlm-9", "mvlm": {"scale": 36}}, "name one scale"),
        ({"model": ...}, "no model 'null'"),
        ({"model": ["mvlm-9"]}, "no model"),
        ({"max_tokens": 10**9}, "at most 1024"),
        ({"max_tokens": "many"}, "at most many tokens"),
        ({"temperature": "hot"}, "temperature is hot"),
        ({"messages": ...}, "one message"),
        ({"messages": []}, "one message"),
        ({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}, "one message"),
        ({"messages": [{"role": "user", "content": "no picture"}]}, "must be the user's"),
        ({"messages": [{"role": "tool", "content": []}]}, "must be the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "0 pictures and 1 texts"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "a part of the message"),
        ({"messages": [{"role": "user", "content": [3]}]}, "a part of the message"),
    ],
)
def test_bodies_that_are_refused(served, picture, change, says):
    status, answer = served.chat(changed(body(picture, QUESTION, max_tokens=1), **change))
    if says is None:
        assert status == 200
        return
    assert status in (400, 404)
    assert says in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]


@pytest.mark.parametrize(
    "url", ["http://example.org/x.png", "file:///etc/passwd", "../x.png", "data:text/html;base64,AA==", "", None, 3, {}]
)
def test_no_url_is_fetched_and_no_path_is_read(served, monkeypatch, url):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection was opened"))
    chat = body(b"", QUESTION)
    chat["messages"][0]["content"][1]["image_url"] = {"url": url}
    connection = socket.socket()
    connection.connect(("127.0.0.1", served.port))
    data = json.dumps(chat).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    answer = b"".join(iter(lambda: connection.recv(65536), b""))
    connection.close()
    assert b"400 Bad Request" in answer
    assert b"nothing is fetched" in answer


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not valid JSON"), (b"{", "not valid JSON"), (b"[]", "not a JSON object"),
        (b"\xff\xfe", "not valid JSON"), (b"[" * 10_000 + b"]" * 10_000, "nested too deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested too deep"),
    ],
)  # fmt: skip
def test_bodies_that_are_no_json(served, data, says):
    status, answer = served.chat(data)
    assert status == 400
    assert says in answer["error"]["message"]


def test_a_body_of_another_type(served, picture):
    assert served.chat(body(picture, QUESTION), **{"Content-Type": "text/plain"})[0] == 415


def test_limits(runtime, picture):
    limits = Limits(body_bytes=5000, picture_bytes=1000, pixels=1000, question_characters=10)
    with serving(runtime, limits=limits) as server:
        assert server.chat(b" " * 5001)[0] == 413
        assert "more than 1000 bytes" in server.chat(body(b"x" * 1200, "q"))[1]["error"]["message"]
        assert "at most 10 characters" in server.chat(body(b"", "q" * 11))[1]["error"]["message"]
        from io import BytesIO

        from PIL import Image

        Image.new("1", (40, 40)).save(small := BytesIO(), "PNG")
        assert "at most 1000 are read" in server.chat(body(small.getvalue(), "q"))[1]["error"]["message"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_body_is_a_chat_or_one_line(picture, data):
    """Any JSON, and a real body with any of its parts replaced by anything."""
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
    chat = body(picture, QUESTION, stream=False, mvlm={"scale": 9}, stop=["x"], stream_options={}, n=1)
    place = data.draw(st.sampled_from(["all", "field", "message", "part", "url", "new"]))
    value = data.draw(anything)
    if place == "all":
        chat = value
    elif place == "field":
        chat[data.draw(st.sampled_from(sorted(chat)))] = value
    elif place == "new":
        chat[data.draw(st.text())] = value
    elif place == "message":
        chat["messages"][0][data.draw(st.sampled_from(["role", "content", "name"]))] = value
    elif place == "part":
        chat["messages"][0]["content"][data.draw(st.integers(0, 1))] = value
    else:
        chat["messages"][0]["content"][1]["image_url"] = value
    try:
        read = read_chat(json.dumps(chat).encode(), Limits(), model_names(SCALES, routed=True))
    except MvlmError as error:
        said = str(error)
    else:
        said = ""
        assert isinstance(read.question, str)
        assert isinstance(read.picture, bytes)
    assert "\n" not in said
    assert len(said) < 400


# Tokens, hosts, the page


def test_a_token_is_asked_for(runtime, picture):
    with serving(runtime, token="se cret") as server:
        assert server.chat(body(picture, QUESTION, max_tokens=1))[0] == 200
        for wrong in ("", "Bearer", "Bearer no", "se cret "):
            status, _, data = server.request("GET", "/v1/models", headers={"Authorization": wrong})
            assert status == 401
            assert "token is missing" in json.loads(data)["error"]["message"]
        assert server.request("GET", "/health", headers={"Authorization": ""})[0] == 200


def test_others_may_not_ask_without_a_token(runtime):
    with pytest.raises(MvlmError, match=r"listening on 0\.0\.0\.0 lets others ask"):
        make_server(runtime, Settings(host="0.0.0.0"))


def test_a_page_of_another_site_cannot_reach_it_under_its_own_name(served):
    assert served.request("GET", "/v1/models", headers={"Host": "evil.example"})[0] == 400
    assert served.request("GET", "/v1/models", headers={"Host": f"localhost:{served.port}"})[0] == 200


def test_the_page_takes_nothing_from_other_hosts(served):
    status, headers, page = served.request("GET", "/")
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert b"http://" not in page.replace(b"http://www.w3.org", b"")
    assert b"https://" not in page


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/%2e%2e/x", "/static/x", "/v1/nothing", "//", "/v1/models/../.."]
)
def test_no_path_leads_anywhere(served, path):
    status, _, data = served.request("GET", path)
    assert status == 404
    assert json.loads(data)["error"]["code"] == "http"


def test_choose_shows_the_router_at_many_prices(served, runtime, picture):
    prices = [0, 0.1, 0.5, 1000]
    asked = {"picture": data_url(picture), "question": QUESTION, "prices": prices}
    status, _, data = served.request("POST", "/v1/mvlm/choose", asked)
    value = json.loads(data)
    view = runtime.look(picture)
    assert status == 200
    assert value["choices"] == [view.choose(QUESTION, price=price).scale for price in prices]
    assert value["probabilities"] == list(view.choose(QUESTION).probabilities.values())
    assert value["scales"] == list(SCALES)
    for wrong in ({"prices": [0] * 257}, {"prices": "x"}, {"prices": [-1]}, {"picture": 3}, {"question": 3}):
        assert served.request("POST", "/v1/mvlm/choose", asked | wrong)[0] == 400


def test_metrics_count_scales_stages_and_refusals(runtime, picture):
    with serving(runtime) as server:
        for scale in (1, 9, 9, "auto"):
            server.chat(body(picture, QUESTION, f"mvlm-{scale}", max_tokens=2))
        server.chat(b"{")
        text = server.request("GET", "/metrics")[2].decode()
    assert 'mvlm_answers_total{chosen="named",scale="9"} 2.0' in text
    assert 'mvlm_refused_total{code="bad-body"} 1.0' in text
    assert 'mvlm_stage_seconds_count{stage="prefill"} 4.0' in text
    assert 'mvlm_stage_seconds_count{stage="vision"} 1.0' in text  # the picture was kept
    assert "mvlm_answer_tokens_total" in text
    assert "mvlm_waiting 0.0" in text


# Many callers, and callers who go


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


def test_a_full_queue_is_refused_at_once(runtime, picture):
    with serving(runtime, limits=Limits(queue=1)) as server, ThreadPoolExecutor(8) as pool:
        chats = [body(picture, QUESTION, "mvlm-144", max_tokens=200) for _ in range(8)]
        statuses = sorted(status for status, _ in pool.map(server.chat, chats))
    assert statuses[0] == 200
    assert statuses[-1] == 429


@pytest.fixture
def slow(monkeypatch) -> list[float]:
    """Every step takes a few milliseconds; when each began."""
    steps = []
    step = Decoder.step

    def slowly(self, embeds, cache):
        steps.append(time.monotonic())
        time.sleep(0.01)
        return step(self, embeds, cache)

    monkeypatch.setattr(Decoder, "step", slowly)
    return steps


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
    gone = time.monotonic()
    time.sleep(0.4)
    assert len(slow) < 100
    assert slow[-1] - gone < 0.1  # the news of it, and a token
    assert served.chat(body(picture, QUESTION, "mvlm-9", max_tokens=1))[0] == 200


def test_an_answer_takes_no_longer_than_is_allowed(runtime, picture, endless, slow):
    with serving(runtime, limits=Limits(seconds=0.3)) as server:
        started = time.monotonic()
        status, answer = server.chat(body(picture, QUESTION, "mvlm-9", max_tokens=300))
        assert status == 503
        assert "no answer within 0.3 s" in answer["error"]["message"]
        assert time.monotonic() - started < 2
        stream = server.request(
            "POST", "/v1/chat/completions", body(picture, QUESTION, "mvlm-9", max_tokens=300, stream=True)
        )
        assert stream[0] == 200
        assert b'"code": "timeout"' in stream[2]
        assert b"[DONE]" not in stream[2]


def test_a_fault_of_ours_ends_one_request_and_no_more(served, runtime, picture, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(Decoder, "step", lambda *_: 1 / 0)
        status, answer = served.chat(body(picture, QUESTION, "mvlm-1", max_tokens=1))
        assert (status, answer["error"]["code"]) == (500, "internal")
        assert "ZeroDivisionError" in answer["error"]["message"]
    assert served.chat(body(picture, QUESTION, "mvlm-1", max_tokens=1))[0] == 200


def test_a_job_whose_caller_left_is_not_begun(runtime):
    async def leave() -> None:
        worker = Worker(runtime, 4, 10**6)
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
        if not warm:
            assert (descriptors(), threading.active_count()) == before


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
