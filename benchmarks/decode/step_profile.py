"""Where the time of a decoding step goes, by kind of node: `python -m benchmarks.decode.step_profile`.

The decoder of benchmarks/decode, one token at a time behind a prompt of 36 visual ones, with onnxruntime's own
profiler on. What lies outside of its run is this project's Python.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.decode.__main__ import SIZES
from benchmarks.decode.own import Own, OwnWide
from benchmarks.decode.peers import TEXT_TOKENS, random_model
from benchmarks.machine import keep

_WARM_STEPS = 10


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="24x896", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--steps", default=100, show_default=True)
@click.option("--keep/--no-keep", "kept", default=True, help="Write results/step_profile.json.")
def main(size: str, threads: int, steps: int, kept: bool) -> None:
    """Profile both kinds of 4 bits, print the shares, and keep them."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder) / "transformers", SIZES[size])
        for peer in (OwnWide, Own):
            own = peer(Path(folder), SIZES[size], threads)
            own.write(model)
            found[own.precision] = shares(own, Path(folder) / own.precision, steps)
            click.echo(f"{own.precision}: {found[own.precision]}")
    if kept:
        command = f"python -m benchmarks.decode.step_profile --size {size} --threads {threads} --steps {steps}"
        click.echo(keep("step_profile", command, size=size, threads=threads, precisions=found))


def shares(own: Own, prefix: Path, steps: int) -> dict[str, Any]:
    """Milliseconds of a step, and the share of each kind of node in it; `outside` is what the engine did not take."""
    own.open()
    decoder = own._decoder
    decoder.sessions["decode"] = session = _profiled(decoder.sessions["decode"], prefix)
    own.prefill(36 + TEXT_TOKENS)
    for _ in range(_WARM_STEPS):
        own.step()
    took = []
    for _ in range(steps):
        started = time.perf_counter()
        own.step()
        took.append(1e6 * (time.perf_counter() - started))
    events = json.loads(Path(session.end_profiling()).read_text())
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    begin = runs[-steps]
    inside = sum(event["dur"] for event in events if event["name"] == "model_run" and event["ts"] >= begin)
    spent: Counter[str] = Counter()
    for event in events:
        if event["name"].endswith("_kernel_time") and event["ts"] >= begin:
            spent[event["args"]["op_name"]] += event["dur"]
    whole = float(np.sum(took))
    by_kind = {kind: round(us / whole, 3) for kind, us in spent.most_common() if us / whole > 0.002}
    between = {"between nodes": round((inside - spent.total()) / whole, 3), "outside": round(1 - inside / whole, 3)}
    return {"step_ms": round(whole / steps / 1000, 2), "shares": by_kind | between}


def _profiled(session: Any, prefix: Path) -> Any:
    """The same session again, with its profiler on."""
    import onnxruntime

    options = session.get_session_options()
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return onnxruntime.InferenceSession(session._model_path, options, providers=session.get_providers())


if __name__ == "__main__":
    main()
