"""The runtime, measured from outside: start, own work, escalations, the server, and whether the router pays in time.

    python -m benchmarks.runtime --demo demo

The demo's bundle is copied and measured with `mvlm bench` first, so that the router weighs this machine's milliseconds.
What is claimed of the router is measured on it, and again with its language model padded to the cost of a larger one.
What else needs a decoder whose tokens cost runs on a random model of each family, made on the spot, with transformers'
own loop beside it; `pool` shows what an escalation costs where no cache can be kept. Where onnxruntime-genai's loop
stands is measured by benchmarks/decode/__main__.py.
"""

from __future__ import annotations

# First, since `machine` takes this folder off the path.
from benchmarks.runtime.padded import padded_bundle
from benchmarks.runtime.random_models import RandomRun, random_run, torch_seconds
from benchmarks.runtime.server import throughput

# isort: split
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import keep
from export.runtime import Runtime, View
from export.runtime.families import FAMILIES
from mvlm_core.data.reading import read_rows
from mvlm_core.data.row import Row
from mvlm_core.scoring import score

_PRICES = (0.0, 0.01, 0.03, 0.08, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0)
_RESAMPLES = 2000
# Layers, and the width of each layer's feed-forward, of the padded language model.
_PADDED = (24, 8192)
_QUESTION = "how many shapes are in the picture?"
_SHORT_QUESTION = "what is it?"
Array = NDArray[np.float64]


@click.command()
@click.option(
    "--demo", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="A finished one."
)
@click.option("--threads", default=2, show_default=True)
@click.option("--pictures", default=90, show_default=True, help="Of the test split, with all their questions.")
@click.option("--padded-pictures", default=20, show_default=True, help="Of them, for the padded model.")
@click.option("--rehearse", is_flag=True, help="Tiny; its figures are not kept.")
def main(demo: Path, threads: int, pictures: int, padded_pictures: int, rehearse: bool) -> None:
    """Measure everything and keep it in results/runtime.json: a few minutes of a machine that does nothing else."""
    pictures = 4 if rehearse else pictures
    rounds = 3 if rehearse else 15
    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(demo / "bundle", Path(scratch) / "bundle", ignore=shutil.ignore_patterns("bench"))
        _mvlm("bench", str(copy), "--threads", str(threads), "--rounds", str(3 if rehearse else 20))
        by_picture = _pictures(demo / "rows", pictures)
        picture = Path(str(by_picture[0][0].image))
        figures: dict[str, Any] = {"threads": threads}
        figures["start"] = start(copy, str(picture), threads, 2 if rehearse else 7)
        _say("start", figures["start"])
        runtime = Runtime.load(copy, threads=threads)
        figures["own_work"] = own_work(copy, picture, threads, rounds)
        _say("own work", figures["own_work"])
        figures["two_questions"] = two_questions(runtime, picture, rounds)
        figures["large"] = {"decoder": "8 x 512, random, float32; a ResNet tower that costs next to nothing"}
        for family in FAMILIES:
            width, layers = (64, 2) if rehearse else (512, 8)
            run = random_run(Path(scratch) / family, family, width, layers)
            figures["large"][family] = large_decoder(run, threads, rounds)
        _say("large decoder", figures["large"])
        figures["server"] = throughput(copy, picture, _QUESTION, threads, requests=16 if rehearse else 320)
        _say("server", figures["server"])
        figures["claim"] = claim(runtime, by_picture)
        _say("answers per second at equal accuracy", figures["claim"]["at_equal_accuracy"])
        some = by_picture[: 2 if rehearse else padded_pictures]
        figures["claim_padded"] = claim_padded(demo, Path(scratch) / "padded", some, threads, rehearse=rehearse)
        _say("the same, padded", figures["claim_padded"]["at_equal_accuracy"])
    if not rehearse:
        asked = f"--threads {threads} --pictures {pictures} --padded-pictures {padded_pictures}"
        command = f"python -m benchmarks.runtime {asked}"
        click.echo(keep("runtime", command, **figures))


def large_decoder(run: RandomRun, threads: int, rounds: int) -> dict[str, Any]:
    """One family, where the language model is what takes the time."""
    runtime = Runtime.load(run.bundle, threads=threads)
    return {
        "escalation_9_to_144": escalation(runtime, run.picture, _QUESTION, rounds),
        "escalation_short_question": escalation(runtime, run.picture, _SHORT_QUESTION, rounds),
        "two_questions": two_questions(runtime, run.picture, rounds),
        "transformers": beside_transformers(runtime, run, threads, rounds),
    }


# Start and own work


def start(bundle: Path, picture: str, threads: int, rounds: int) -> dict[str, float]:
    """Seconds in fresh interpreters, medians: the import, and from nothing imported to the first answer."""
    code = f"""
import json, time
began = time.perf_counter()
from export.runtime import Runtime
imported = time.perf_counter()
Runtime.load({str(bundle)!r}, threads={threads}).ask({picture!r}, {_QUESTION!r})
print(json.dumps([imported - began, time.perf_counter() - imported]))
"""
    runs = [json.loads(subprocess.check_output([sys.executable, "-c", code])) for _ in range(rounds)]
    imports, answers = np.median(runs, axis=0)
    return {"import_s": round(float(imports), 3), "load_and_first_answer_s": round(float(answers), 3)}


@dataclass
class Inside:
    """Milliseconds that engines ran, whoever asked them."""

    ms: float = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.ms += 1000 * (time.perf_counter() - started)

        return call


@contextmanager
def engines_timed() -> Iterator[Inside]:
    """Time spent in onnxruntime itself, measured at its own two doors."""
    from onnxruntime import InferenceSession

    inside, kept = Inside(), (InferenceSession.run, InferenceSession.run_with_iobinding)
    InferenceSession.run, InferenceSession.run_with_iobinding = (inside.timed(door) for door in kept)
    try:
        yield inside
    finally:
        InferenceSession.run, InferenceSession.run_with_iobinding = kept


def own_work(bundle: Path, picture: Path, threads: int, rounds: int) -> dict[str, float]:
    """What a question and a token take beyond the sessions' own time, medians; memory beyond the sessions."""
    runtime = Runtime.load(bundle, threads=threads)
    object.__setattr__(runtime.manifest, "stop_ids", frozenset())  # every answer as long as it may be
    before = _resident_mib()
    question, short, long, looks = [], [], [], []
    with engines_timed() as inside:
        for _ in range(3 * rounds):
            view, look_ms = _beyond(inside, lambda: runtime.look(picture))
            looks.append(look_ms)
            question.append(_beyond(inside, lambda v=view: v.ask(_QUESTION, max_new_tokens=1))[1])
            short.append(_beyond(inside, lambda v=view: v.ask(_QUESTION, 9, max_new_tokens=1))[1])
            long.append(_beyond(inside, lambda v=view: v.ask(_QUESTION, 9, max_new_tokens=33))[1])
    return {
        "look_ms": round(float(np.median(looks)), 3),
        "question_ms": round(float(np.median(question)), 3),
        "question_at_a_named_scale_ms": round(float(np.median(short)), 3),
        "token_ms": round(float(np.median(long) - np.median(short)) / 32, 4),
        "memory_beyond_open_sessions_mib": round(_resident_mib() - before, 1),
    }


def _beyond(inside: Inside, task: Callable[[], Any]) -> tuple[Any, float]:
    """What a task gives, and its milliseconds outside the engines."""
    inside.ms, started = 0.0, time.perf_counter()
    result = task()
    return result, 1000 * (time.perf_counter() - started) - inside.ms


# Reading twice what need be read once


def escalation(runtime: Runtime, picture: Path, question: str, rounds: int) -> dict[str, float]:
    """What an escalation costs in all: asked at 9 tokens and then at 144 on the same cache, against 144 at once.

    A token of answer each, the picture encoded before. A question's own positions stand behind the picture's, so they
    are read twice by way of 9, whatever is kept: `question_tokens` says how many they are here.
    """
    once, cheap, closer = [], [], []
    for _ in range(rounds):
        for took, m in ((once, 144), (cheap, 9)):
            view = runtime.look(picture)
            took.append(_ms(lambda v=view, m=m: v.ask(question, m, max_new_tokens=1)))
        closer.append(_ms(lambda v=view: v.ask(question, 144, max_new_tokens=1)))
    both = [first + second for first, second in zip(cheap, closer, strict=True)]
    figures = _ratio("at_once_ms", once, "by_way_of_9_ms", both)
    figures["question_tokens"] = len(runtime.prompt.after(question))
    figures["second_step_alone_ratio"] = _ratio("once", once, "step", closer)["ratio"]
    return figures


def two_questions(runtime: Runtime, picture: Path, rounds: int) -> dict[str, float]:
    """Two questions about a picture at the finest scale, against one: the look included, a token each."""
    finest, one, two = max(runtime.manifest.scales), [], []
    for _ in range(rounds):

        def ask(view: View, question: str) -> None:
            view.ask(question, finest, max_new_tokens=1)

        one.append(_ms(lambda: ask(runtime.look(picture), _QUESTION)))

        def both() -> None:
            view = runtime.look(picture)
            ask(view, _QUESTION)
            ask(view, "what time of day is it?")

        two.append(_ms(both))
    return _ratio("one_ms", one, "two_ms", two)


def beside_transformers(runtime: Runtime, run: RandomRun, threads: int, rounds: int) -> dict[str, float]:
    """The same weights, picture, question and 32 tokens through transformers' own `generate`, greedy."""
    object.__setattr__(runtime.manifest, "stop_ids", frozenset())
    own = [_ms(lambda: runtime.ask(run.picture, _QUESTION, 144, max_new_tokens=32)) for _ in range(rounds)]
    theirs = [1000 * s for s in torch_seconds(run, _QUESTION, 144, 32, threads, rounds)]
    return _ratio("own_ms", own, "transformers_ms", theirs)


# The claim


@dataclass
class Way:
    """One way to answer: what every row took and scored."""

    ms: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)


def claim(runtime: Runtime, by_picture: list[list[Row]]) -> dict[str, Any]:
    """Every row at every fixed scale and at every price, end to end, a new look each time, in turns."""
    named = [("scale", m) for m in runtime.manifest.scales] + [("price", p) for p in _PRICES]
    ways: dict[tuple[str, float], Way] = {name: Way() for name in named}
    order, groups = np.random.default_rng(0), []
    stages: dict[tuple[str, float], dict[str, float]] = {name: {} for name in named}
    _warm(runtime, by_picture[0][0])
    numbered = [(number, row) for number, rows in enumerate(by_picture) for row in rows]
    with click.progressbar(numbered, label="every scale, every price", show_eta=True) as bar:
        for number, row in bar:
            groups.append(number)
            for place in order.permutation(len(named)):
                kind, value = named[place]
                options = {"scale": value} if kind == "scale" else {"price": value}
                started = time.perf_counter()
                answer = runtime.ask(row.image.read(), row.question, **options)  # type: ignore[arg-type]
                way = ways[named[place]]
                way.ms.append(1000 * (time.perf_counter() - started))
                way.right.append(score(answer.text, row.answers))
                for stage, ms in answer.timings.items():
                    stages[named[place]][stage] = stages[named[place]].get(stage, 0.0) + ms
    count = len(groups)
    report = {
        f"{kind} {value:g}": {
            "answers_per_s": round(1000 / float(np.mean(way.ms)), 1),
            "accuracy": round(float(np.mean(way.right)), 4),
            "stages_ms": {stage: round(ms / count, 3) for stage, ms in stages[kind, value].items()},
        }
        for (kind, value), way in ways.items()
    }
    assert runtime.router is not None
    return {
        "rows": count, "pictures": len(by_picture), "cost_unit": runtime.router.facts.cost_unit, "ways": report,
        "at_equal_accuracy": _at_equal_accuracy(ways, np.asarray(groups)),
    }  # fmt: skip


def claim_padded(
    demo: Path, folder: Path, by_picture: list[list[Row]], threads: int, *, rehearse: bool
) -> dict[str, Any]:
    """The claim on the demo's model with the costs of a larger one (`runtime_padded`)."""
    layers, feed_forward = (6, 1024) if rehearse else _PADDED
    padded = padded_bundle(demo, folder, layers, feed_forward)
    _mvlm("bench", str(padded.bundle), "--threads", str(threads), "--rounds", "3" if rehearse else "10")
    made = {"layers": layers, "feed_forward": feed_forward,
            "millions_of_multiplications_a_token": padded.millions_of_multiplications_a_token}  # fmt: skip
    return made | claim(Runtime.load(padded.bundle, threads=threads), by_picture)


def _at_equal_accuracy(ways: dict[tuple[str, float], Way], groups: NDArray[np.int64]) -> dict[str, Any]:
    """For each fixed scale: the router's rate at its accuracy over its own rate, with a 95 % interval over pictures.

    The router's rate at an accuracy lies on its front over prices, mixed between the two prices around it. Where no
    price reaches the accuracy, there is no figure.
    """
    ms = {name: np.asarray(way.ms) for name, way in ways.items()}
    right = {name: np.asarray(way.right) for name, way in ways.items()}
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    chance = np.random.default_rng(0)
    report: dict[str, Any] = {}
    for name in [name for name in ways if name[0] == "scale"]:
        whole = _speedup(ms, right, name, np.arange(len(groups)))
        picked = (chance.integers(len(members), size=len(members)) for _ in range(_RESAMPLES))
        drawn = [_speedup(ms, right, name, np.concatenate([members[i] for i in some])) for some in picked]
        known = [ratio for ratio in drawn if ratio is not None]
        reached = len(known) / len(drawn)
        interval = [round(float(q), 3) for q in np.quantile(known, [0.025, 0.975])] if reached > 0.95 else None
        report[f"{name[1]:g} tokens"] = {
            "router_over_fixed": None if whole is None else round(whole, 3), "interval_95": interval,
            "reached_in_share_of_resamples": round(reached, 3),
        }  # fmt: skip
    return report


def _speedup(
    ms: dict[tuple[str, float], Array], right: dict[tuple[str, float], Array], fixed: tuple[str, float],
    rows: NDArray[np.int64],
) -> float | None:  # fmt: skip
    prices = [name for name in ms if name[0] == "price"]
    points = sorted((float(right[name][rows].mean()), float(ms[name][rows].mean())) for name in prices)
    wanted, own_ms = float(right[fixed][rows].mean()), float(ms[fixed][rows].mean())
    above = [took for accuracy, took in points if accuracy >= wanted]
    if not above:
        return None
    best = min(above)
    for (low, low_ms), (high, high_ms) in ((a, b) for a in points for b in points if a[0] < wanted <= b[0]):
        share = (wanted - low) / (high - low)  # of the questions go at the higher price's accuracy
        best = min(best, (1 - share) * low_ms + share * high_ms)
    return own_ms / best


def _warm(runtime: Runtime, row: Row) -> None:
    for m in runtime.manifest.scales:
        runtime.ask(row.image.read(), row.question, m)
    runtime.ask(row.image.read(), row.question)


# Small things


def _pictures(rows: Path, count: int) -> list[list[Row]]:
    """Rows of the test split, by picture, as many pictures as asked."""
    groups: dict[str, list[Row]] = {}
    for row in read_rows(rows):
        if row.split == "test":
            groups.setdefault(row.group, []).append(row)
    return list(groups.values())[:count]


def _ms(task: Callable[[], Any]) -> float:
    started = time.perf_counter()
    task()
    return 1000 * (time.perf_counter() - started)


def _ratio(name: str, base: list[float], other_name: str, other: list[float]) -> dict[str, float]:
    first, second = float(np.median(base)), float(np.median(other))
    return {name: round(first, 2), other_name: round(second, 2), "ratio": round(second / first, 3)}


def _resident_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _mvlm(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "mvlm_core.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def _say(what: str, figures: Any) -> None:
    click.echo(f"{what}: {json.dumps(figures)}")


if __name__ == "__main__":
    main()
