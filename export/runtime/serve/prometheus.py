"""What a server counts, for Prometheus."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from export.runtime.answer import Answer

_LATEST = 4096
_QUANTILES = (0.5, 0.95, 0.99)
_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Latency:
    """How long something took: a histogram for sums over servers, and the percentiles of the latest few."""

    def __init__(self, name: str, what: str, registry: CollectorRegistry) -> None:
        self._histogram = Histogram(f"{name}_seconds", what, buckets=_BUCKETS_S, registry=registry)
        self._latest: deque[float] = deque(maxlen=_LATEST)
        share = Gauge(
            f"{name}_latest_seconds", f"{what}: percentiles of the latest {_LATEST}", ["quantile"], registry=registry
        )
        for quantile in _QUANTILES:
            share.labels(str(quantile)).set_function(functools.partial(self._share, quantile))

    def observe(self, seconds: float) -> None:
        self._histogram.observe(seconds)
        self._latest.append(seconds)

    def _share(self, quantile: float) -> float:
        """NaN, as Prometheus has it, while nothing was observed."""
        latest = sorted(self._latest.copy())
        return latest[min(len(latest) - 1, int(quantile * len(latest)))] if latest else math.nan


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
        self.first_token = Latency("mvlm_first_token", "From a request to the first token of its answer", own)
        self.next_token = Latency("mvlm_next_token", "From one token of an answer to the next", own)
        self.waiting = Gauge("mvlm_waiting", "Requests that wait for the model", registry=own)
        self.connections = Gauge("mvlm_connections", "Connections that are open", registry=own)
        self.bytes_in_flight = Gauge("mvlm_bytes_in_flight", "Bytes of bodies under way", registry=own)
        self.faults = Counter("mvlm_faults", "Faults of the server itself", registry=own)
        self.log_lines_lost = Counter("mvlm_log_lines_lost", "Log lines that could not be written", registry=own)

    def answered(self, answers: Sequence[Answer], seconds: float) -> None:
        self._request.observe(seconds)
        for answer in answers:
            self._answered(answer)

    def _answered(self, answer: Answer) -> None:
        self._answers.labels(str(answer.scale), "named" if answer.probability is None else "router").inc()
        self._tokens.inc(len(answer.token_ids))
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
