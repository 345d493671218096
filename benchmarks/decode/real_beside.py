"""Everybody's decoders of one real language model, at the quality each has: one text, one run, turns that alternate.

`python -m benchmarks.decode.real_beside FOLDER --work WORK` reads a model that `benchmarks.real_weights --mixed` saved.
Every peer reads the first positions of each piece of two texts in one step, as a prompt, and the rest token by token;
each choice behind is held against torch's in float32. Then prompts and tokens are timed in rounds in which everybody
has one turn, with the load of the machine beside it. Files, scores and times are kept in WORK as soon as they are
there, so that a run that was ended goes on, and one on a quieter machine adds rounds. `--again` forgets the times.
A peer that is not installed, or that cannot, is left out and named.

Peers beside what this project needs itself: `pip install llama-cpp-python gguf onnxruntime-genai openvino`, and for
OpenVINO's files an `optimum-cli` of `optimum-intel[openvino]`, which `MVLM_OPTIMUM` names. `LLAMA_CPP_LIB_PATH` may
name a folder of prebuilt libraries of llama.cpp, in the place of those that were built with the package.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.decode.clock import ms, settle
from benchmarks.decode.real import REAL_MODEL
from benchmarks.decode.real_own import Own
from benchmarks.decode.real_peers import GenAi, LlamaCpp, OpenVino, Peer, Torch
from benchmarks.machine import keep

# Of each piece, what is read in one step; prompts that are timed; tokens behind them, the first of which are not timed.
PROMPT, PROMPTS, STEPS, WARM_STEPS = 96, (36, 144, 576), 14, 2
THREADS = (1, 2)
# A name, and what opens it for a model, a folder of its files and a number of threads.
Opens = Callable[[Path, Path, int], Peer]


def _opens(kind: Any, what: str) -> Opens:
    return lambda model, work, threads: kind(model, work, what, threads)


_OWN = ("float32", "int8", "int4", "int4-fast", "prefill=int8,decode=int4")
PEERS: dict[str, Opens] = {
    **{f"own {name}": _opens(Own, name) for name in _OWN},
    **{f"llama.cpp {kind}": _opens(LlamaCpp, kind) for kind in ("Q4_0", "Q4_K_M", "Q8_0")},
    "genai int4": _opens(GenAi, "block_size=32"),
    "genai int4 k-quant mixed": _opens(GenAi, "block_size=32 algo_config=k_quant_mixed"),
    "openvino int4": _opens(OpenVino, "--weight-format int4 --group-size 64 --ratio 1.0"),
    "openvino int8": _opens(OpenVino, "--weight-format int8"),
    "transformers float32": _opens(Torch, "float32"), "transformers bfloat16": _opens(Torch, "bfloat16"),
}  # fmt: skip


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where files, scores and times are kept.")
@click.option("--peer", "names", multiple=True, type=click.Choice(list(PEERS)), help="Left out: all.")
@click.option("--rounds", type=int, default=5, show_default=True, help="How often everybody takes a turn.")
@click.option("--again", is_flag=True, help="Forget the times that are there.")
@click.option("--keep/--no-keep", "kept", default=True, help="Write results/real_beside.json.")
def main(model: Path, work: Path, names: tuple[str, ...], rounds: int, again: bool, kept: bool) -> None:
    """Score and time everybody, and keep the figures."""
    work.mkdir(exist_ok=True, parents=True)
    if again:
        (work / "times.jsonl").unlink(missing_ok=True)
    absent: dict[str, str] = {}
    facts = {name: found for name in names or PEERS if (found := _tried(name, absent, partial(_scored, model, work)))}
    for threads in THREADS:
        opened = {
            name: peer for name in facts
            if (peer := _tried(name, absent, lambda name, n=threads: PEERS[name](model, work, n)))
        }  # fmt: skip
        for done in range(rounds):
            _round(opened, threads, done, work / "times.jsonl", absent)
        opened.clear()
    rows = told_by_peer(facts, _lines(work / "times.jsonl"))
    for name, row in rows.items():
        click.echo(f"{name:<28} KL {row['kl']:.4f}  {row['mib']:6.1f} MiB  {json.dumps(row.get('times', {}))}")
    if kept:
        command = "python -m benchmarks.decode.real_beside FOLDER --work WORK"
        choices = sum(len(right) for _, right in _wanted(model, work))
        click.echo(
            keep(
                "real_beside", command, peers=rows, absent=absent, prompt=PROMPT, choices=choices,
                steps=STEPS - WARM_STEPS, model=REAL_MODEL,
            )
        )  # fmt: skip


def _tried(name: str, absent: dict[str, str], call: Callable[[str], Any]) -> Any:
    """What a call gives, or None where it fails: its reason is kept, and the others go on."""
    try:
        return call(name)
    except Exception as error:  # a peer that is not there, or cannot, must not end the others' run
        reason = str(error).splitlines()[0] if str(error) else ""
        absent[name] = f"{type(error).__name__}: {reason}"[:200]
        click.echo(f"{name} is left out: {absent[name]}")
        return None


def _scored(model: Path, work: Path, name: str) -> dict[str, Any]:
    """What a peer's choices are worth and its files take, from before where they are known."""
    file = work / "scores.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if name not in known:
        peer = PEERS[name](model, work, THREADS[0])
        known[name] = score(peer, _wanted(model, work)) | {"mib": peer.mib, "about": peer.about}
        file.write_text(json.dumps(known))
        click.echo(f"{name}: KL {known[name]['kl']:.4f}, {peer.mib:.1f} MiB")
    facts: dict[str, Any] = known[name]
    return facts


def score(peer: Peer, wanted: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    """Means over every choice behind the prompts: pieces of ids (S,) with torch's logits (S - PROMPT, V) each."""
    import torch

    from export.bundle.fidelity import Fidelity

    seen, counts = Fidelity(), []
    for ids, right in wanted:
        found = [peer.begin(ids[:PROMPT]), *(peer.read(int(token)) for token in ids[PROMPT:-1])]
        seen.see(right.float(), torch.from_numpy(np.stack(found)), torch.from_numpy(ids[PROMPT:]))
        counts.append(len(found))
    share = np.asarray(counts) / sum(counts)
    return {name: float(share @ np.asarray(getattr(seen, name))) for name in ("kl", "top1", "nats")}


def _wanted(folder: Path, work: Path) -> list[tuple[Any, Any]]:
    """Pieces of both texts, and what torch says behind their prompts in float32; computed once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.decode.scored import texts_of

    read = [ids for pieces in texts_of(AutoTokenizer.from_pretrained(folder)).values() for ids in pieces]
    read = [ids for ids in read if ids.shape[1] > PROMPT + 1]
    file = work / "wanted.pt"
    if not file.is_file():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            torch.save([model(ids).logits[0, PROMPT - 1 : -1] for ids in read], file)
    return [(ids[0].numpy(), right) for ids, right in zip(read, torch.load(file, mmap=True), strict=True)]


def _round(peers: dict[str, Peer], threads: int, done: int, file: Path, absent: dict[str, str]) -> None:
    """A turn for everybody, each time somebody else first; times are added to a file."""
    names = list(peers)
    first = done % max(len(names), 1)
    for name in [*names[first:], *names[:first]]:
        settle()
        load, began = os.getloadavg()[0], time.time()
        if times := _tried(name, absent, lambda name: turn(peers[name])):
            line = {"peer": name, "threads": threads, "load": load, "at": began, **times}
            with file.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
    click.echo(f"{threads} threads, round {done + 1}: load {os.getloadavg()[0]:.1f}")


def turn(peer: Peer) -> dict[str, Any]:
    """Milliseconds of every prompt, and of each token behind the shortest, which is read last."""
    times: dict[str, Any] = {}
    for length in sorted(PROMPTS, reverse=True):
        times[f"prefill_{length}"] = ms(lambda n=length: peer.begin(100 + np.arange(n)))
    times["steps"] = [ms(lambda at=at: peer.read(200 + at)) for at in range(STEPS)][WARM_STEPS:]
    return times


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def told_by_peer(facts: dict[str, dict[str, Any]], lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Scores with the medians of times: tokens a second, and a prompt's positions a second, by threads."""
    rows = {}
    for name, row in facts.items():
        times = {}
        for threads in THREADS:
            mine = [line for line in lines if line["peer"] == name and line["threads"] == threads]
            if not mine:
                continue
            steps = [step for line in mine for step in line["steps"]]
            prompts = {
                str(n): 1000 * n / statistics.median(line[f"prefill_{n}"] for line in mine) for n in PROMPTS
            }  # fmt: skip
            load = [line["load"] for line in mine]
            times[str(threads)] = {
                "decode_tokens_s": 1000 / statistics.median(steps), "prefill_tokens_s": prompts, "rounds": len(mine),
                "best_step_ms": min(steps),
                "load": {"least": min(load), "median": statistics.median(load), "most": max(load)},
            }  # fmt: skip
        rows[name] = row | {"times": times}
    return rows


if __name__ == "__main__":
    main()
