"""Everything at once: conversations, single questions, streams, malformed and giant bodies, callers who go."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time

from export.runtime.serve.limits import Limits
from tests.support.serving import body, data_url, serving
from tests.support.tiny import QUESTIONS

REQUESTS, CONNECTIONS = 400, 16


def conversation(made, number: int) -> dict:
    """Three turns with a picture, a few different ones."""
    picture = made.picture(number % 3).read_bytes()
    content = [{"type": "image_url", "image_url": {"url": data_url(picture)}}, {"type": "text", "text": QUESTIONS[0]}]
    messages = [
        {"role": "system", "content": "You watch a street, and you are brief."},
        {"role": "user", "content": content}, {"role": "assistant", "content": f"red {number % 2}"},
        {"role": "user", "content": QUESTIONS[number % 4]},
    ]  # fmt: skip
    return {"model": "mvlm-4", "messages": messages, "max_tokens": 3}


def test_mixed_requests_are_answered_as_alone(runtime, made):
    """None is lost, every answer is the serial one, and no thread, byte or connection is left."""
    kinds = {
        "conversation": [conversation(made, number) for number in range(6)],
        "question": [body(made.picture(i).read_bytes(), QUESTIONS[i % 4], "mvlm-9", max_tokens=3) for i in range(4)],
        "text": [{"model": "mvlm-auto", "messages": [{"role": "user", "content": f"hi {i}"}], "max_tokens": 3}
                 for i in range(3)],
        "malformed": [{"model": "mvlm-9", "messages": [{"role": "user", "content": 3}]}, {"model": "none"}],
        "giant": [body(b"x" * 200_000, "what?", "mvlm-9")],
    }  # fmt: skip
    before = threading.active_count()
    limits = Limits(queue=64, picture_bytes=100_000)
    got: list[tuple[str, int, int, dict]] = []
    lost: list[BaseException] = []
    with serving(runtime, limits=limits) as server:
        alone = {kind: [server.chat(chat) for chat in chats] for kind, chats in kinds.items()}

        def call(seed: int) -> None:
            chance = random.Random(seed)
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            for _ in range(REQUESTS // CONNECTIONS):
                kind = chance.choice([*kinds, "conversation", "leaves"])
                at = chance.randrange(len(kinds.get(kind, kinds["question"])))
                chat = kinds.get(kind, kinds["question"])[at]
                try:
                    data = json.dumps(chat | ({"stream": True} if kind == "leaves" else {}))
                    connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
                    if kind == "leaves":
                        connection.close()
                        continue
                    response = connection.getresponse()
                    got.append((kind, at, response.status, json.loads(response.read())))
                except Exception as error:
                    lost.append(error)

        callers = [threading.Thread(target=call, args=(seed,)) for seed in range(CONNECTIONS)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        until = time.monotonic() + 10
        while b"mvlm_bytes_in_flight 0.0" not in server.runtime_metrics() and time.monotonic() < until:
            time.sleep(0.05)
        assert b"mvlm_bytes_in_flight 0.0" in server.runtime_metrics()
        assert b"mvlm_faults_total 0.0" in server.runtime_metrics()
    assert lost == []
    assert len(got) > REQUESTS / 2
    for kind, at, status, answer in got:
        wanted_status, wanted = alone[kind][at]
        assert status == wanted_status
        assert answer.get("choices") == wanted.get("choices")
        assert ("error" in answer) == ("error" in wanted)
    assert {kind for kind, *_ in got} == set(kinds)
    assert threading.active_count() <= before
