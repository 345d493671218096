"""CPU time of a decoder's files on one thread: what others do on the machine weighs less on it than on the clock."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

PROMPTS, STEPS, ROUNDS = (36, 144, 576), 12, 2
POSITIONS = 1024


def speed(model: Any, recipe: Any) -> dict[str, Any]:
    """Write a model in a recipe, and time prompts and single tokens: the least CPU milliseconds of each."""
    from export.graphs.decoder import write_decoder
    from export.graphs.dialects import FusedDialect
    from export.graphs.weights import WeightFile
    from export.runtime.backends.onnx import Cache, Decoder, Device

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with WeightFile(folder / "weights.bin") as weights:
            graph, facts = write_decoder(
                model, weights.tensor, FusedDialect(), "one.onnx", product=recipe, positions=POSITIONS
            )
        onnx.save(graph, folder / "one.onnx")
        decoder = Decoder(folder / "one.onnx", facts, Device(threads=1))
        table = model.get_input_embeddings().weight.detach().numpy()

        def begin(length: int) -> Cache:
            cache = Cache(decoder, POSITIONS)
            decoder.step(table[100 + np.arange(length)], cache)
            return cache

        found = {str(length): min(_cpu_ms(lambda n=length: begin(n)) for _ in range(ROUNDS)) for length in PROMPTS}
        cache = begin(PROMPTS[0])
        steps = [_cpu_ms(lambda: decoder.step(table[7:8], cache)) for _ in range(STEPS)]
    return {"prefill_cpu_ms": found, "decode_cpu_ms": min(steps)}


def _cpu_ms(call: Any) -> float:
    started = time.process_time()
    call()
    return 1000 * (time.process_time() - started)
