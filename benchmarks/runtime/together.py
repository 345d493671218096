"""Several questions at once, `ask_many`, against the same ones one by one: what it gains, and whether answers differ.

`python -m benchmarks.runtime.together --demo demo` asks a random model whose language model is large enough that
tokens cost, in each precision, about a round of new pictures and about one picture, with short and with long answers;
and the demo's model every question of some pictures, where the answers themselves are compared.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.machine import keep
from benchmarks.runtime.products import one_product
from benchmarks.runtime.quality import sampled, torch_scores
from benchmarks.runtime.random_models import random_run
from export.bundle.files import write_bundle
from export.bundle.source import Source, read_source
from export.graphs.quantize import WIDE_BLOCK, Blocks, Dense, DynamicInt8
from export.graphs.targets import plan
from export.graphs.writer import Product
from export.runtime import Answer, Runtime
from export.runtime.backends.onnx import Cache
from export.runtime.backends.together import Together
from mvlm_core.data.row import Row

_PRECISIONS = ("float32", "int4", "prefill=int8,decode=int4")
_ROWS = (1, 2, 4, 8, 16)
_LENGTHS = (2, 8, 32)
_SCALE, _PICTURES, _STEPS, _PROMPT = 36, 16, 12, 64
_WIDTH = 896
_PRODUCTS: dict[str, Product] = {
    "float32": Dense(), "int8": DynamicInt8(), "int4": Blocks(4, zeros=True),
    "int4-fast": Blocks(4, WIDE_BLOCK, zeros=True),
}  # fmt: skip
_QUESTION = "how many shapes are in the picture?"


@click.command()
@click.option("--demo", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--pictures", default=60, show_default=True, help="Of the demo's test split, with all their questions.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--rehearse", is_flag=True, help="Tiny; its figures are not kept.")
def main(demo: Path, pictures: int, threads: int, rounds: int, rehearse: bool) -> None:
    """Measure every precision, and keep results/together.json: a few minutes of a machine that does nothing else."""
    width, layers, rounds, pictures = (64, 2, 1, 2) if rehearse else (_WIDTH, 24, rounds, pictures)
    source = read_source(demo / "run", None, sorted({m for _, m in torch_scores(demo / "labels")}))
    groups = sampled(demo / "rows", torch_scores(demo / "labels"), pictures)
    random, trained = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, precision in enumerate(_PRECISIONS):
            run = random_run(Path(scratch) / f"{number}", "pool", width, layers, precision)
            random[precision] = gains(Runtime.load(run.bundle, threads=threads), rounds)
            click.echo(f"{precision}, random: {random[precision]}")
    for precision in _PRECISIONS:
        trained[precision] = answers(source, precision, groups, threads)
        click.echo(f"{precision}, the demo's: {trained[precision]}")
    products = apart()
    click.echo(f"a position beside others, against alone: {products}")
    looked = looks(Runtime.load(demo / "bundle", threads=threads), rounds)
    click.echo(f"a look, by pictures at once: {looked}")
    if not rehearse:
        command = f"python -m benchmarks.runtime.together --pictures {pictures} --threads {threads} --rounds {rounds}"
        facts = {
            "scale": _SCALE,
            "pictures": _PICTURES,
            "random": random,
            "demo": trained,
            "look_ms": looked,
            "products": products,
        }
        click.echo(keep("together", command, decoder=f"{layers} x {width}, random", **facts))


def gains(runtime: Runtime, rounds: int) -> dict[str, Any]:
    """A step by its rows, and answers a second both ways; every answer has the length that is named."""
    runtime.manifest = replace(runtime.manifest, stop_ids=frozenset())
    chance = np.random.default_rng(0)
    pictures = list(chance.integers(0, 256, (_PICTURES, 96, 96, 3), np.uint8))
    questions = [f"{_QUESTION} {word}?" for word in ("now", "here", "there", "then", "so", "why", "how", "when")]
    report: dict[str, Any] = {"step_ms": steps(runtime, rounds), "answer_tokens": {}}
    for length in _LENGTHS:

        def alone(length: int = length) -> list[Answer]:
            return [runtime.ask(picture, _QUESTION, _SCALE, max_new_tokens=length) for picture in pictures]

        def together(length: int = length) -> list[Answer]:
            return runtime.ask_many(pictures, _QUESTION, _SCALE, max_new_tokens=length)

        def each(length: int = length) -> list[Answer]:
            view = runtime.look(pictures[0])
            return [view.ask(question, _SCALE, max_new_tokens=length) for question in questions]

        def at_once(length: int = length) -> list[Answer]:
            return runtime.look(pictures[0]).ask_many(questions, _SCALE, max_new_tokens=length)

        report["answer_tokens"][str(length)] = {
            "pictures": _both(alone, together, rounds), "questions_about_one": _both(each, at_once, rounds)
        }  # fmt: skip
    return report


def steps(runtime: Runtime, rounds: int) -> dict[str, float]:
    """Milliseconds of a step that reads so many conversations on, in turns; the best of all, since load only adds."""
    decoder, chance = runtime.decoder, np.random.default_rng(0)
    width = runtime.table.rows([0]).shape[1]
    several = {rows: Together(decoder, rows, 2 * _PROMPT) for rows in _ROWS}
    for rows, together in several.items():
        for row in range(rows):
            cache = Cache(decoder, 2 * _PROMPT)
            decoder.step(chance.standard_normal((_PROMPT - row, width), np.float32), cache)
            together.add(cache)
    took: dict[int, list[float]] = {rows: [] for rows in _ROWS}
    for _ in range(_STEPS):
        for rows, together in several.items():
            x = chance.standard_normal((rows, width), np.float32)
            took[rows] += [_seconds(lambda together=together, x=x: together.step(x)) for _ in range(rounds)]
    return {str(rows): round(1000 * min(seconds), 2) for rows, seconds in took.items()}


def looks(runtime: Runtime, rounds: int) -> dict[str, float]:
    """Milliseconds a picture in the vision tower, so many at once; the best of all."""
    graph, size_px, report = runtime.manifest.vision, runtime.manifest.image.size_px, {}
    for count in _ROWS:
        feeds = {graph.inputs["pixel_values"]: np.zeros((count, 3, size_px, size_px), np.float32)}
        took = [_seconds(lambda feeds=feeds: runtime.encoder.vision.run(None, feeds)) for _ in range(rounds * _STEPS)]
        report[str(count)] = round(1000 * min(took) / count, 3)
    return report


def apart() -> dict[str, float]:
    """What one position gives beside seven others against what it gives alone, in each product of a decoder.

    The largest difference, as a share of the largest value.
    """
    chance = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, _WIDTH, generator=chance) for size in (4 * _WIDTH, 8))
    report = {}
    for name, product in _PRODUCTS.items():
        with tempfile.TemporaryDirectory() as folder:
            session = one_product(Path(folder), product, weight)
            together = session.run(None, {"x": x.numpy()})[0]
            alone = np.concatenate([session.run(None, {"x": row[None].numpy()})[0] for row in x])
        report[name] = float(f"{np.abs(together - alone).max() / np.abs(alone).max():.2g}")
    return report


def answers(source: Source, precision: str, groups: Sequence[Sequence[Row]], threads: int) -> dict[str, Any]:
    """The demo's questions at every scale, picture by picture, both ways: answers that differ, and the gain in time."""
    differ, asked, spent = 0, 0, {"alone": 0.0, "together": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(source, plan("ort-cpu", precision, None, source.positions), Path(folder), lambda steps: None)
        runtime = Runtime.load(folder, threads=threads)
        with click.progressbar(groups, label=precision) as bar:
            for rows in bar:
                picture, questions = rows[0].image.read(), [row.question for row in rows]
                for m in source.scales:
                    first, second = runtime.look(picture), runtime.look(picture)
                    started = time.perf_counter()
                    alone = [first.ask(question, m) for question in questions]
                    between = time.perf_counter()
                    together = second.ask_many(questions, m)
                    spent["together"] += time.perf_counter() - between
                    spent["alone"] += between - started
                    asked += len(questions)
                    differ += sum(a.token_ids != b.token_ids for a, b in zip(alone, together, strict=True))
    tokens = {"answers": asked, "differ": differ}
    return tokens | {"times_as_fast": round(spent["alone"] / spent["together"], 3)}


def _both(alone: Callable[[], list[Answer]], together: Callable[[], list[Answer]], rounds: int) -> dict[str, float]:
    """Answers a second one by one and at once, in turns, medians; and how many answers differ."""
    first, second = alone(), together()
    differ = sum(a.token_ids != b.token_ids for a, b in zip(first, second, strict=True))
    took = [(_seconds(alone), _seconds(together)) for _ in range(rounds)]
    one_by_one, at_once = np.median(took, axis=0).tolist()
    return {
        "one_by_one_per_s": round(len(first) / one_by_one, 2), "at_once_per_s": round(len(first) / at_once, 2),
        "times_as_fast": round(float(np.median([a / b for a, b in took])), 3), "differ": differ, "answers": len(first),
    }  # fmt: skip


def _seconds(task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
