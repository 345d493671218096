"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from export.runtime.answer import Answer

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own, who = self._registry, ["scale", "chosen"]
        self._answers = Counter("mvlm_answers", "Answers by scale and by who chose it", who, registry=own)
        self._fallbacks = Counter("mvlm_fallbacks", "Answers that did not go the usual way", ["why"], registry=own)
        self._refused = Counter("mvlm_refused", "Requests that were not answered", ["code"], registry=own)
        self._stage = Histogram("mvlm_stage_seconds", "Time by stage", ["stage"], buckets=_BUCKETS_S, registry=own)
        self._request = Histogram(
            "mvlm_request_seconds", "Requests, waiting included", buckets=_BUCKETS_S, registry=own
        )
        self._tokens = Counter("mvlm_answer_tokens", "Tokens of answers", registry=own)
        self.waiting = Gauge("mvlm_waiting", "Requests that wait for the model", registry=own)
        self.connections = Gauge("mvlm_connections", "Connections that are open", registry=own)
        self.bytes_in_flight = Gauge("mvlm_bytes_in_flight", "Bytes of bodies under way", registry=own)
        self.faults = Counter("mvlm_faults", "Faults of the server itself", registry=own)
        self.log_lines_lost = Counter("mvlm_log_lines_lost", "Log lines that could not be written", registry=own)

    def answered(self, answer: Answer, seconds: float) -> None:
        self._answers.labels(str(answer.num_visual_tokens), "named" if answer.probability is None else "router").inc()
        self._tokens.inc(len(answer.token_ids))
        self._request.observe(seconds)
        for stage, ms in answer.timings.items():
            self._stage.labels(stage.removesuffix("_ms")).observe(ms / 1000)
        if answer.escalated is not None:
            self._fallbacks.labels("escalation").inc()
        if answer.out_of_distribution:
            self._fallbacks.labels("out_of_distribution").inc()
        if answer.finish in ("deadline", "stopped"):
            self._fallbacks.labels(answer.finish).inc()

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
