"""How fast a decoder reads a prompt and writes tokens on a CPU, beside its peers, in one interleaved run.

`python benchmarks/decode.py` makes random models of two sizes, writes each as this project, onnxruntime-genai and
transformers would, and lets everybody take turns: a prompt of 36 visual tokens, one of 576, and a few tokens behind the
first. A peer that is not installed is left out and named. Random weights cost what trained ones cost; what they
answer is not looked at here (`benchmarks/quality.py` does that on a trained model).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from decode_peers import EVERY_SCALE, PEERS, TEXT_TOKENS, Peer, random_model, write_connectors
from machine import keep

# Visual tokens of the two prompts, tokens written behind the first, and how many of these are not timed.
SCALES = (36, 576)
STEPS, WARM_STEPS = 24, 2
_READ_MIB = 512


@dataclass(frozen=True)
class Size:
    """A language model's numbers."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    tied: bool


SIZES = {
    "24x896": Size(896, 24, 14, 2, 4864, 32_000, tied=False),
    "0.36b-150k": Size(896, 24, 14, 2, 4864, 151_936, tied=True),
    "tiny": Size(64, 2, 4, 2, 128, 512, tied=True),
}


@click.command()
@click.option("--size", "names", multiple=True, type=click.Choice(list(SIZES)), default=("24x896", "0.36b-150k"))
@click.option("--peer", "peers", multiple=True, type=click.Choice(list(PEERS)), help="Left out: all.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True, help="How often everybody takes a turn.")
@click.option("--limit-s", type=float, default=330, show_default=True, help="Of one size; later rounds are left out.")
@click.option("--keep/--no-keep", "kept", default=True, help="Write results/decode.json.")
def main(
    names: tuple[str, ...], peers: tuple[str, ...], threads: int, rounds: int, limit_s: float, kept: bool
) -> None:  # fmt: skip
    """Measure everybody, print a table, and keep the figures."""
    figures = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = _measure(Path(folder), SIZES[name], peers or tuple(PEERS), threads, rounds, limit_s)
        _show(name, figures[name])
    if kept:
        command = f"python benchmarks/decode.py {' '.join(f'--size {name}' for name in names)} --threads {threads}"
        click.echo(keep("decode", command, threads=threads, steps=STEPS, text_tokens=TEXT_TOKENS, sizes=figures))


def _measure(
    folder: Path, size: Size, names: tuple[str, ...], threads: int, rounds: int, limit_s: float
) -> dict[str, Any]:
    """Write, open and time every peer at one size."""
    until = time.monotonic() + limit_s
    bandwidth = [_read_gb_s(threads)]
    model = random_model(folder / "transformers", size)
    opened, absent = _open(folder, model, size, names, threads)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in opened}
    for _ in range(rounds):
        for name, peer in opened.items():
            _turn(peer, times[name])
        bandwidth.append(_read_gb_s(threads))
        if time.monotonic() > until:
            break
    limit = max(bandwidth)
    memory = {name: _memory_mib(folder, size, name, threads) for name in opened}
    return {
        "size": asdict(size), "read_gb_s": {"best": limit, "median": float(np.median(bandwidth))}, "absent": absent,
        "memory_of_scales": _memory_of_scales(folder, size, threads) if "own int4" in opened else None,
        "peers": {
            name: _facts(peer, times[name], limit) | {"memory_mib": memory[name]} for name, peer in opened.items()
        },
    }  # fmt: skip


def _open(
    folder: Path, model: Any, size: Size, names: tuple[str, ...], threads: int
) -> tuple[dict[str, Peer], dict[str, str]]:
    opened, absent = {}, {}
    for name in names:
        try:
            peer = PEERS[name](folder, size, threads)
            started = time.perf_counter()
            peer.write(model)
            peer.write_s = time.perf_counter() - started
            started = time.perf_counter()
            peer.open()
            peer.open_s = time.perf_counter() - started
        except Exception as error:  # a peer that is not there, or cannot, must not end the others' run
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            continue
        opened[name] = peer
    return opened, absent


def _turn(peer: Peer, times: dict[str, list[float]]) -> None:
    """One turn of a peer: the long prompt, the short one, and tokens behind it; milliseconds are added to `times`."""
    for m in reversed(SCALES):
        times.setdefault(f"prefill_{m}", []).append(_ms(lambda m=m: peer.prefill(m + TEXT_TOKENS)))
    steps = [_ms(peer.step) for _ in range(STEPS)]
    times.setdefault("step", []).extend(steps[WARM_STEPS:])


def _facts(peer: Peer, times: dict[str, list[float]], read_gb_s: float) -> dict[str, Any]:
    facts: dict[str, Any] = {
        key: {"best_ms": min(values), "median_ms": float(np.median(values))} for key, values in times.items()
    }
    limit = 1e9 * read_gb_s / peer.bytes_a_token
    best, median = (1000 / facts["step"][key] for key in ("best_ms", "median_ms"))
    facts["tokens_s"] = {"best": best, "median": median, "limit": limit, "share_of_limit": best / limit}
    return facts | {"write_s": peer.write_s, "open_s": peer.open_s, "mb_a_token": peer.bytes_a_token / 1e6}


def _ms(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def _read_gb_s(threads: int) -> float:
    """How fast memory is read: the best of a few sums of an array far larger than any cache, split among threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    data = torch.ones(_READ_MIB * 2**20 // 4)
    best = min(_ms(lambda: data.sum()) for _ in range(5))
    torch.set_num_threads(before)
    return data.numel() * 4 / best / 1e6


def _memory_mib(folder: Path, size: Size, name: str, threads: int) -> float:
    """What opening a peer and a prompt cost, in a process of its own: private memory, without mapped files."""
    return _child("peer", folder, size, name, threads)


def _memory_of_scales(folder: Path, size: Size, threads: int) -> dict[str, float]:
    """The decoder with one connector, and with five."""
    write_connectors(folder, size, EVERY_SCALE)
    one, five = (_child(f"connectors {count}", folder, size, "own int4", threads) for count in (1, 5))
    return {"one_mib": one, "five_mib": five, "ratio": five / one}


def _child(task: str, folder: Path, size: Size, name: str, threads: int) -> float:
    asked = json.dumps([task, str(folder), asdict(size), name, threads])
    code = "import sys; from decode_memory import main; main(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, asked], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan")


def _show(name: str, figures: dict[str, Any]) -> None:
    click.echo(f"\n{name}: memory is read at {figures['read_gb_s']['best']:.1f} GB/s")
    click.echo(
        f"{'':<20}{'tokens/s best':>14}{'median':>8}{'of limit':>9}{'prefill 36':>11}{'576':>8}{'MiB':>7}{'open s':>7}"
    )
    for peer, facts in figures["peers"].items():
        tokens = facts["tokens_s"]
        click.echo(
            f"{peer:<20}{tokens['best']:>14.1f}{tokens['median']:>8.1f}{tokens['share_of_limit']:>9.2f}"
            f"{facts['prefill_36']['best_ms']:>8.0f} ms{facts['prefill_576']['best_ms']:>5.0f} ms"
            f"{facts['memory_mib']:>7.0f}{facts['open_s']:>7.2f}"
        )
    if figures["memory_of_scales"]:
        click.echo(f"five scales in memory: {figures['memory_of_scales']['ratio']:.3f} times one")
    for peer, reason in figures["absent"].items():
        click.echo(f"{peer:<20} left out: {reason}")


if __name__ == "__main__":
    main()
