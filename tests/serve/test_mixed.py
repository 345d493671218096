"""Everything at once; `python -m benchmarks.runtime.mixed` sends more of it to a server of its own process."""

from __future__ import annotations

import threading
import time

from benchmarks.runtime.mixed import alone, kinds, mixed
from export.runtime.serve.limits import Limits
from tests.support.serving import serving

REQUESTS, CONNECTIONS = 400, 16


def test_mixed_requests_are_answered_as_alone(runtime, made):
    """None is lost, every answer is the serial one, and no thread, byte or connection is left."""
    bodies = kinds([made.picture(number).read_bytes() for number in range(4)], "mvlm-9")
    before = threading.active_count()
    with serving(runtime, limits=Limits(queue=64)) as server:
        wanted = alone(server.port, bodies)
        seen = mixed(server.port, bodies, REQUESTS, CONNECTIONS)
        until = time.monotonic() + 10
        while b"mvlm_bytes_in_flight 0.0" not in server.runtime_metrics() and time.monotonic() < until:
            time.sleep(0.05)
        assert b"mvlm_bytes_in_flight 0.0" in server.runtime_metrics()
        assert b"mvlm_faults_total 0.0" in server.runtime_metrics()
    assert seen.lost == []
    assert seen.differing(wanted) == []
    assert len(seen.got) + seen.left == REQUESTS
    assert seen.left > 0
    assert {kind for kind, *_ in seen.got} == set(bodies)
    statuses = {kind: {status for status, _ in answers} for kind, answers in wanted.items()}
    assert statuses == {
        "conversation": {200}, "question": {200}, "text": {200}, "malformed": {400, 404}, "giant": {400}
    }  # fmt: skip
    assert threading.active_count() <= before
