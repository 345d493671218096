"""What a bundle did while a test ran: views that its tower encoded, positions that its decoder read."""

import pytest

from export.runtime.backends.onnx import Decoder
from export.runtime.encoder import Encoder


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many views each run of the tower encoded."""
    counts = []
    run = Encoder._run
    monkeypatch.setattr(
        Encoder, "_run", lambda self, pixels, roles: counts.append(len(pixels)) or run(self, pixels, roles)
    )
    return counts


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """How many positions each step of the decoder read."""
    lengths = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, x, cache: lengths.append(len(x)) or step(self, x, cache))
    return lengths
