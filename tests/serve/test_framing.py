"""Who may ask under which name, requests that can be read in two ways, paths that lead nowhere, and the end."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from export.runtime import MvlmError
from export.runtime.serve.server import Settings, make_server
from tests.support.serving import body, serving
from tests.support.tiny import QUESTIONS

QUESTION = QUESTIONS[0]


@pytest.mark.parametrize("token", ["se cret", "пароль-密码"])
def test_a_token_is_asked_for(runtime, picture, token):
    with serving(runtime, token=token) as server:
        for scheme in ("Bearer", "bearer", "BEARER"):
            given = {"Authorization": f"{scheme} {token}".encode()}
            assert server.chat(body(picture, QUESTION, max_tokens=1), **given)[0] == 200
        for wrong in ("", "Bearer", "Bearer no", f"{token} ", f"Basic {token}", f"Bearer {token}x", f"Bearer{token}"):
            status, headers, data = server.request("GET", "/v1/models", headers={"Authorization": wrong.encode()})
            error = json.loads(data)["error"]
            assert status == 401
            assert headers["www-authenticate"] == "Bearer"
            assert "token is missing" in error["message"]
            assert error["type"] == "authentication_error"
        assert server.request("GET", "/health", headers={"Authorization": b""})[0] == 200


def test_others_may_not_ask_without_a_token(runtime):
    with pytest.raises(MvlmError, match=r"listening on 0\.0\.0\.0 lets others ask"):
        make_server(runtime, Settings(host="0.0.0.0"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_names_of_this_machine(served, host):
    assert served.request("GET", "/v1/models", headers={"Host": f"{host}:{served.port}"})[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example:80", "[::2]"])
def test_a_page_of_another_site_cannot_reach_it_under_its_own_name(served, host):
    status, _, data = served.request("GET", "/v1/models", headers={"Host": host})
    error = json.loads(data)["error"]
    assert (status, error["code"]) == (400, "bad-host")
    assert "MVLM_TOKEN" in error["message"]


def test_a_page_of_another_site_is_known_by_its_origin(runtime, picture):
    """It may ask where its site is allowed, or where it knows the token; the page of the server itself always may."""
    chat, evil = body(picture, QUESTION, "mvlm-1", max_tokens=1), {"Origin": "https://evil.example"}
    good = {"Origin": "https://good.example"}
    with serving(runtime, origins=("https://good.example",)) as server:
        for path, sent in (("/v1/chat/completions", chat), ("/v1/models", None)):
            status, headers, data = server.request("POST" if sent else "GET", path, sent, evil)
            assert (status, json.loads(data)["error"]["code"]) == (403, "bad-origin")
            assert "access-control-allow-origin" not in headers
            status, headers, _ = server.request("POST" if sent else "GET", path, sent, good)
            assert (status, headers["access-control-allow-origin"]) == (200, "https://good.example")
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        assert server.request("OPTIONS", "/v1/chat/completions", headers=good | asks)[0] == 200
        assert server.request("OPTIONS", "/v1/chat/completions", headers=evil | asks)[0] == 403
        assert server.request("GET", "/v1/models", headers={"Origin": server.url})[0] == 200
        assert server.request("GET", "/v1/models", headers={"Origin": "null"})[0] == 403
    with serving(runtime, token="secret") as server:
        status, headers, _ = server.request("GET", "/v1/models", headers=evil)
        assert (status, "access-control-allow-origin" in headers) == (200, False)
        assert server.request("GET", "/v1/models", headers=evil | {"Authorization": "Bearer no"})[0] == 401


def test_sites_are_named_whole(made, mvlm):
    for origin in ("example.org", "https://example.org/path", "*", "https://*.org"):
        refused = mvlm("serve", "--bundle", made.bundle, "--allow-origin", origin)
        assert refused.exit_code == 2
        assert "write https://example.org, without a path" in refused.output


def test_with_a_token_any_name_will_do(runtime):
    with serving(runtime, token="secret") as server:
        for host in ("host.docker.internal", "camera.lan:8080", "localhost"):
            assert server.request("GET", "/v1/models", headers={"Host": host})[0] == 200
            assert server.request("GET", "/v1/models", headers={"Host": host, "Authorization": "Bearer x"})[0] == 401


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


def test_a_method_that_is_not_there(served):
    status, headers, data = served.request("GET", "/v1/chat/completions")
    assert (status, headers["allow"]) == (405, "POST")
    assert json.loads(data)["error"]["type"] == "invalid_request_error"
    status, headers, _ = served.request("POST", "/v1/models", {})
    assert status == 405
    assert set(headers["allow"].split(", ")) == {"GET", "HEAD"}


def exchanged(port: int, sent: bytes) -> bytes:
    """What comes back, until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_body_with_a_length_and_chunks_ends_the_connection(served):
    """The second request is the body of the first for one reader, and a request of its own for another."""
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    sent = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    answer = exchanged(served.port, sent + hidden)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"connection: close" in answer.lower()


def test_the_rest_of_a_body_that_was_refused_is_no_request(served):
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    refused = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
        b"Content-Length: %d\r\n\r\n"
    )
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = exchanged(served.port, refused % len(hidden) + hidden + last)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 415" in answer
    assert b"mvlm-auto" not in answer


def test_at_the_end_callers_are_told_not_to_come_back(runtime, picture, endless, slow):
    """Answers that are under way come whole, and say that the connection ends."""
    answers, closing = [], threading.Event()
    with serving(runtime) as server:

        def ask() -> None:
            chat = body(picture, QUESTION, "mvlm-9", max_tokens=60)
            answers.append(server.request("POST", "/v1/chat/completions", chat))
            closing.set()

        callers = [threading.Thread(target=ask) for _ in range(3)]
        for caller in callers:
            caller.start()
        while not slow:
            time.sleep(0.005)
    for caller in callers:
        caller.join()
    assert [status for status, _, _ in answers] == [200] * 3
    assert all(headers["connection"] == "close" for _, headers, _ in answers)


def test_a_request_that_is_on_its_way_at_the_end_is_answered(runtime):
    with serving(runtime) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        first = b""
        while b"}" not in first:
            first += connection.recv(65536)
        server.stop()
        time.sleep(0.3)  # the server has begun to end
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        connection.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer
