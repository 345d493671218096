"""Drawing a token from a large vocabulary: as the runtime does, which sorts few of them, and by sorting all.

`python -m benchmarks.runtime.drawing` takes seconds. Processor time is counted, not the clock's: a busy machine does no
harm. Probabilities fall with the rank of a token as rank ** -1.5, in any order of the tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import keep
from export.runtime.decode.sampling import Sampler, log_softmax
from export.runtime.request import request_of

Array = NDArray[np.float32]
_VOCABULARY, _FALL, _ROUNDS = 151_936, 1.5, 12  # Qwen2's
_WAYS: dict[str, dict[str, Any]] = {
    "top_p 0.9": {"top_p": 0.9}, "top_k 40": {"top_k": 40}, "min_p 0.1": {"min_p": 0.1}, "all": {},
}  # fmt: skip


@click.command()
def main() -> None:
    """Measure, and keep results/drawing.json."""
    generator = np.random.default_rng(0)
    falling = -_FALL * np.log(np.arange(1, _VOCABULARY + 1))
    logits = [generator.permutation(falling).astype(np.float32) for _ in range(_ROUNDS)]
    told = {}
    for name, options in _WAYS.items():
        sampler = Sampler(request_of("?", "auto", {"temperature": 1.0, "seed": 0, **options}))
        few, every = _milliseconds(sampler.pick, logits), _milliseconds(partial(_sorted, options), logits)
        told[name] = {"ms": few, "sorting_all_ms": every, "ratio": round(every / few, 2)}
        click.echo(f"{name}: {told[name]}")
    click.echo(keep("drawing", "python -m benchmarks.runtime.drawing", vocabulary=_VOCABULARY, draws=told))


def _milliseconds(draw: Callable[[Array], Any], logits: list[Array]) -> float:
    """The median of the processor's time for one draw."""
    took = []
    for one in logits:
        began = time.process_time()
        draw(one)
        took.append(1e3 * (time.process_time() - began))
    return round(float(np.median(took)), 3)


def _sorted(options: dict[str, Any], logits: Array) -> int:
    """The plain way: the whole vocabulary sorted, and then cut."""
    probability = np.exp(log_softmax(logits).astype(np.float64))
    order = np.argsort(-probability, kind="stable")[: options.get("top_k", len(logits))]
    head = probability[order]
    head = head[: 1 + int(np.searchsorted(head.cumsum(), options.get("top_p", 1.0)))] if "top_p" in options else head
    head = head[head >= options.get("min_p", 0.0) * head[0]]
    return int(order[np.random.default_rng(0).choice(len(head), p=head / head.sum())])


if __name__ == "__main__":
    main()
