"""How fast a decoder reads a prompt and writes tokens on a CPU, beside its peers, in one interleaved run.

`python -m benchmarks.decode` makes random models of two sizes, writes each as this project and its peers would, and
lets everybody take turns: a prompt of 576 visual tokens, one of 36, and a few tokens behind that. Before each turn it
waits until nobody's threads are busy any more. A peer that is not installed, fails, or takes too long is left out and
named. Random weights cost what trained ones cost; what 8 and 4 bits do to the answers is in
`benchmarks/runtime/quality.py`.
With the first size it also times a whole export and what a bundle takes to load.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.decode.clock import ms, read_gb_s, settle, within
from benchmarks.decode.llama import LlamaCpp
from benchmarks.decode.others import (
    GenAi,
    GenAiWide,
    Optimum,
    Transformers,
    TransformersCompiled,
    TransformersHalf,
    TransformersHalfCompiled,
)
from benchmarks.decode.own import EVERY_SCALE, Own, OwnFloat32, OwnTwo, OwnTwoWide, OwnWide, write_connectors
from benchmarks.decode.peers import TEXT_TOKENS, Peer, random_model
from benchmarks.machine import keep

# Visual tokens of the two prompts, tokens written behind the second, and how many of these are not timed.
SCALES = (576, 36)
STEPS, WARM_STEPS = 24, 2
# What is waited for at most: a peer's files and its opening, a turn, a child process.
_OPEN_S, _TURN_S, _CHILD_S = 150, 60, 180
# Whose turn takes longer than this takes one only: the others' medians want the time.
_SLOW_S = 5


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


PEERS: dict[str, Any] = {
    "own int8 + int4-fast": OwnTwoWide, "own int8 + int4": OwnTwo, "own int4-fast": OwnWide, "own int4": Own,
    "own float32": OwnFloat32,
    "genai int4": GenAi, "genai int4-128": GenAiWide, "llama.cpp Q4_0": LlamaCpp,
    "transformers float32": Transformers, "transformers float32 compiled": TransformersCompiled,
    "transformers bfloat16": TransformersHalf, "transformers bfloat16 compiled": TransformersHalfCompiled,
    "optimum float32": Optimum,
}  # fmt: skip


@dataclass
class Entry:
    """A peer that takes part, and its figures so far."""

    peer: Peer
    write_s: float
    open_s: float
    times: dict[str, list[float]] = field(default_factory=dict)
    turn_s: float = 0.0


class Run:
    """Everybody at one size."""

    def __init__(self, folder: Path, size: Size, threads: int, limit_s: float) -> None:
        self.folder, self.size, self.threads = folder, size, threads
        self.started = time.monotonic()
        self.limit_s = limit_s
        self.entries: dict[str, Entry] = {}
        self.absent: dict[str, str] = {}
        self.bandwidth: list[float] = []

    def open(self, names: tuple[str, ...]) -> None:
        """Write and open every peer; one that cannot is named with its own reason."""
        self.say("making a random model")
        model = random_model(self.folder / "transformers", self.size)
        for name in names:
            peer: Peer = PEERS[name](self.folder, self.size, self.threads)
            try:
                with within(_OPEN_S):
                    write_s, open_s = (ms(call) / 1000 for call in (lambda peer=peer: peer.write(model), peer.open))
            except Exception as error:  # a peer that is not there, or cannot, must not end the others' run
                self.leave_out(name, error)
                continue
            self.entries[name] = Entry(peer, write_s, open_s)
            self.say(f"{name}: written in {write_s:.1f} s, open in {open_s:.2f} s")

    def rounds(self, most: int) -> int:
        """Let everybody take turns, up to `most` times, or as often as the time allows; at least once."""
        self.bandwidth.append(read_gb_s(self.threads))
        for done in range(most if self.entries else 0):
            started = time.monotonic()
            turns = list(self.entries.items())
            for name, entry in [*turns[done % len(turns) :], *turns[: done % len(turns)]]:  # somebody else first
                if entry.turn_s > _SLOW_S:
                    continue
                settle()
                try:
                    with within(_TURN_S):
                        entry.turn_s = ms(lambda entry=entry: _turn(entry)) / 1000
                except Exception as error:
                    self.leave_out(name, error)
                    del self.entries[name]
            self.bandwidth.append(read_gb_s(self.threads))
            took = time.monotonic() - started
            self.say(f"round {done + 1}: {took:.0f} s")
            if time.monotonic() - self.started + took > self.limit_s:
                return done + 1
        return most

    def figures(self, rounds: int) -> dict[str, Any]:
        """What there is to keep, with memory measured in a process for each peer."""
        limit = max(self.bandwidth)
        by_peer = {}
        for name, entry in self.entries.items():
            by_peer[name] = _facts(entry, limit) | {"memory_mib": self.child("peer", name)}
        self.say("memory of each peer is measured")
        scales = self.memory_of_scales() if "own int4" in self.entries else None
        read = {"best": limit, "median": float(np.median(self.bandwidth))}
        return {
            "size": asdict(self.size), "rounds": rounds, "read_gb_s": read, "memory_of_scales": scales,
            "peers": by_peer, "absent": self.absent,
        }  # fmt: skip

    def memory_of_scales(self) -> dict[str, float]:
        """The decoder with one connector, and with five."""
        write_connectors(self.folder, self.size.hidden, EVERY_SCALE)
        one, five = (self.child(f"connectors {count}", "own int4") for count in (1, 5))
        return {"one_mib": one, "five_mib": five, "ratio": five / one}

    def child(self, task: str, name: str) -> float:
        """Private memory that opening a peer and a prompt cost, mapped files not counted; NaN where it fails."""
        asked = json.dumps([task, str(self.folder), asdict(self.size), name, self.threads])
        done = _python("import sys; from benchmarks.decode.memory import main; main(sys.argv[1])", asked)
        return float(done[-1]) if done else float("nan")

    def leave_out(self, name: str, error: Exception) -> None:
        reason = str(error).splitlines()[0] if str(error) else ""
        self.absent[name] = f"{type(error).__name__}: {reason}"[:200]
        self.say(f"{name} is left out: {self.absent[name]}")

    def say(self, text: str) -> None:
        click.echo(f"{time.monotonic() - self.started:5.0f} s  {text}")


@click.command()
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(SIZES)), default=("24x896", "0.36b-150k"))
@click.option("--peer", "names", multiple=True, type=click.Choice(list(PEERS)), help="Left out: all.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True, help="How often everybody takes a turn.")
@click.option(
    "--limit-s", type=float, default=240, show_default=True, help="Of one size; no round begins that passes it."
)
@click.option("--export/--no-export", "whole", default=True, help="Time a whole export, too.")
@click.option("--keep/--no-keep", "kept", default=True, help="Write results/decode.json.")
def main(
    sizes: tuple[str, ...], names: tuple[str, ...], threads: int, rounds: int, limit_s: float, whole: bool, kept: bool
) -> None:  # fmt: skip
    """Measure everybody, print a table, and keep the figures."""
    figures, export = {}, None
    for name in sizes:
        click.echo(f"\n{name}")
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder), SIZES[name], threads, limit_s)
            run.open(names or tuple(PEERS))
            figures[name] = run.figures(run.rounds(rounds))
        _show(figures[name])
    if whole:
        click.echo("\nexporting a whole random model of the first size")
        export = _export(SIZES[sizes[0]], threads)
    if kept:
        command = f"python -m benchmarks.decode {' '.join(f'--size {name}' for name in sizes)} --threads {threads}"
        facts = {"threads": threads, "steps": STEPS, "text_tokens": TEXT_TOKENS, "export": export, "sizes": figures}
        click.echo(keep("decode", command, **_finite(facts)))


def _turn(entry: Entry) -> None:
    """One turn of a peer: the long prompt, the short one, and tokens behind it; milliseconds are added."""
    for m in SCALES:
        took = ms(lambda m=m: entry.peer.prefill(m + TEXT_TOKENS))
        entry.times.setdefault(f"prefill_{m}", []).append(took)
    steps = [ms(entry.peer.step) for _ in range(STEPS)]
    entry.times.setdefault("step", []).extend(steps[WARM_STEPS:])


def _facts(entry: Entry, gb_s: float) -> dict[str, Any]:
    facts: dict[str, Any] = {
        key: {"best_ms": min(values), "median_ms": float(np.median(values))} for key, values in entry.times.items()
    }
    limit = 1e9 * gb_s / entry.peer.bytes_a_token
    best, median = (1000 / facts["step"][key] for key in ("best_ms", "median_ms"))
    facts["tokens_s"] = {"best": best, "median": median, "limit": limit, "share_of_limit": best / limit}
    return facts | {
        "write_s": entry.write_s, "open_s": entry.open_s, "mb_a_token": entry.peer.bytes_a_token / 1e6,
        "about": entry.peer.about,
    }  # fmt: skip


def _export(size: Size, threads: int) -> dict[str, float] | None:
    """Seconds of a whole export and of loading what came of it; None where it failed."""
    asked = json.dumps([asdict(size), threads])
    lines = _python("import sys; from benchmarks.decode.export import main; main(sys.argv[1])", asked)
    if not lines:
        click.echo("the export failed")
        return None
    facts: dict[str, float] = json.loads(lines[-1])
    click.echo("  ".join(f"{key} {value:.1f}" for key, value in facts.items()))
    return facts


def _python(code: str, asked: str) -> list[str]:
    """What a process of its own says, line by line; nothing where it fails or takes too long."""
    command = [sys.executable, "-c", code, asked]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=_CHILD_S, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        click.echo(f"a process failed: {str(error.stderr or error).strip().splitlines()[-1][:200]}")
        return []
    return done.stdout.split("\n")[:-1]


def _finite(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _show(figures: dict[str, Any]) -> None:
    click.echo(f"memory is read at {figures['read_gb_s']['best']:.1f} GB/s")
    click.echo(
        f"{'':<31}{'tokens/s best':>14}{'median':>8}{'of limit':>9}{'prefill 36':>11}{'576':>8}{'MiB':>7}{'open s':>7}"
    )
    for peer, facts in figures["peers"].items():
        tokens = facts["tokens_s"]
        click.echo(
            f"{peer:<31}{tokens['best']:>14.1f}{tokens['median']:>8.1f}{tokens['share_of_limit']:>9.2f}"
            f"{facts['prefill_36']['best_ms']:>8.0f} ms{facts['prefill_576']['best_ms']:>5.0f} ms"
            f"{facts['memory_mib']:>7.0f}{facts['open_s']:>7.2f}"
        )
    if figures["memory_of_scales"]:
        click.echo(f"five scales in memory: {figures['memory_of_scales']['ratio']:.3f} times one")
    for peer, reason in figures["absent"].items():
        click.echo(f"{peer:<31}left out: {reason}")


if __name__ == "__main__":
    main()
