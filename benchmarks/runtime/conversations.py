"""A conversation of many turns: milliseconds to the first token, with what was read before and without.

`python -m benchmarks.runtime.conversations` asks a random model whose language model is large enough that positions
cost. A picture is shown at the first, fourth and seventh turn; each turn adds a question and an answer.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.machine import keep
from benchmarks.runtime.random_models import random_run
from export.runtime import Runtime
from export.runtime.chat import Chats

_WIDTH, _LAYERS, _TURNS, _SCALE, _TOKENS = 896, 24, 10, 36, 4
_SHOWN = (0, 3, 6)


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--rehearse", is_flag=True, help="Tiny; its figures are not kept.")
def main(threads: int, rounds: int, rehearse: bool) -> None:
    """Measure, and keep results/conversations.json: a few minutes of a machine that does nothing else."""
    width, layers, rounds = (64, 2, 1) if rehearse else (_WIDTH, _LAYERS, rounds)
    with tempfile.TemporaryDirectory() as scratch:
        run = random_run(Path(scratch), "pool", width, layers)
        runtime = Runtime.load(run.bundle, threads=threads)
        pictures = [np.random.default_rng(i).integers(0, 256, (96, 96, 3), np.uint8) for i in range(len(_SHOWN))]
        views = [runtime.look(picture) for picture in pictures]  # looked at before: only reading is measured
        told: dict[str, list[list[float]]] = {"kept": [], "anew": []}
        positions: list[int] = []
        for _ in range(rounds):
            runtime.chats = Chats(runtime)
            kept, positions = turns(runtime, views, forget=False)
            told["kept"].append(kept)
            told["anew"].append(turns(runtime, views, forget=True)[0])
    medians = {name: np.median(took, axis=0).round(1).tolist() for name, took in told.items()}
    click.echo(f"positions {positions}: {medians}")
    if not rehearse:
        click.echo(
            keep(
                "conversations", f"python -m benchmarks.runtime.conversations --threads {threads} --rounds {rounds}",
                decoder=f"{layers} x {width}, random, float32", scale=_SCALE, shown_at=[turn + 1 for turn in _SHOWN],
                positions=positions, first_token_ms=medians,
            )
        )  # fmt: skip


def turns(runtime: Runtime, views: list[Any], *, forget: bool) -> tuple[list[float], list[int]]:
    """Milliseconds to the first token of each turn, and the positions that stand before it."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You watch a street, and you are brief."}]
    took, positions = [], []
    for number in range(_TURNS):
        shown = [{"type": "image", "image": views[_SHOWN.index(number)]}] if number in _SHOWN else []
        question = {"type": "text", "text": f"what is there now? {number}"}
        messages.append({"role": "user", "content": [*shown, question]})
        if forget:
            runtime.chats = Chats(runtime)
        chats = runtime.chats  # opened before the clock
        assert chats
        started = time.perf_counter()
        first = runtime.chat(messages, _SCALE, max_new_tokens=1)
        took.append(1000 * (time.perf_counter() - started))
        positions.append(first.prompt_tokens)
        messages.append({"role": "assistant", "content": runtime.chat(messages, _SCALE, max_new_tokens=_TOKENS).text})
    return took, positions


if __name__ == "__main__":
    main()
