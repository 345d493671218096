"""One bundle, one server and one picture for the tests of the server."""

from __future__ import annotations

import time
from dataclasses import replace

import openai
import pytest

from export.runtime import Runtime
from export.runtime.backends.onnx import Decoder
from tests.support.bundles import Made, pool_bundle
from tests.support.serving import serving


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
