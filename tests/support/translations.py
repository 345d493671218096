"""torch's exporter reads its translations anew for each graph, which takes longer than a tiny graph: here, once."""

from __future__ import annotations

import functools


def read_once() -> None:
    """Keep what the exporter reads at the first graph for those that follow. The exporter looks it up, and no more."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = functools.cache(ONNXRegistry.from_torchlib.__func__)
    ONNXRegistry.from_torchlib = classmethod(lambda cls, *of, **named: read(cls, *of, **named))
