"""Whether `auto` ever loses time: its rate at equal accuracy over every fixed scale, and every mix of them.

    python -m benchmarks.runtime.auto --demo demo

The demo's model is padded to the costs of SmolLM2-135M (multiplications a token; `padded.py`) and written in each
precision; the one whose finest scale takes least is used. `mvlm bench` measures its parts. What is right at each scale
is known of all test rows from the demo's labels, which are of float32: so what is compared is which scale is chosen and
what that takes, and not what rounding loses. The sums are held against whole questions to the padded model, asked in
turns.
"""

from __future__ import annotations

# First, since `machine` takes this folder off the path.
from benchmarks.runtime.padded import padded_bundle
from benchmarks.runtime.policies import Point, World, compare

# isort: split
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.machine import keep
from export.runtime import Runtime
from export.runtime.backends.onnx import Device
from export.runtime.machine import device_name
from export.runtime.manifest import Manifest, read_manifest
from export.runtime.routing.costs import CostTable, read_costs
from export.runtime.routing.numpy_onnx import GraphWalk
from export.runtime.routing.policy import Policy, Seen, is_strange
from export.runtime.routing.router_graph import read_metadata
from mvlm_core.data.reading import read_rows
from mvlm_core.data.row import Row
from router.graph.ask import ask_graph
from router.labels import read_table

# Layers, and the width of each layer's feed-forward: 135 million multiplications a token at the demo's width of 128.
_PADDED = (30, 11520)
_ANSWER_TOKENS = 3  # what the demo's questions are answered in, their end included
_QUESTION = "what colour is the circle at the top?"
_PRICES = (0.0, *np.geomspace(0.003, 30, 24).round(5).tolist())
_ASKED_WHOLE = (0.03, 0.3, 3.0)
MODES = {"one question a picture": World.alone, "many questions a picture": World.in_turn}


@click.command()
@click.option(
    "--demo", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="A finished one."
)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=8, show_default=True, help="Of `mvlm bench`.")
@click.option("--pictures", default=6, show_default=True, help="About which whole questions are asked.")
@click.option("--precision", "precisions", multiple=True, default=["float32", "int8", "int4"], show_default=True)
@click.option("--rehearse", is_flag=True, help="Tiny; its figures are not kept.")
def main(demo: Path, threads: int, rounds: int, pictures: int, precisions: tuple[str, ...], rehearse: bool) -> None:
    """Measure and keep results/auto.json: at most ten minutes of a machine that does nothing else."""
    load = os.getloadavg()[0]
    layers, feed_forward = (4, 512) if rehearse else _PADDED
    with tempfile.TemporaryDirectory() as scratch:
        finest_ms, bundles = {}, {}
        for precision in precisions:
            padded = padded_bundle(demo, Path(scratch) / precision, layers, feed_forward, precision)
            bundles[precision] = padded.bundle
            _mvlm("bench", padded.bundle, "--threads", threads, "--rounds", rounds, "--warmup", 1,
                  "--answer-tokens", _ANSWER_TOKENS, "--question", _QUESTION)  # fmt: skip
            finest_ms[precision] = round(max(_costs(padded.bundle, threads)[1].costs.values()), 2)
            click.echo(f"{precision}: {finest_ms[precision]} ms at the finest scale")
        best = min(finest_ms, key=finest_ms.__getitem__)
        manifest, costs = _costs(bundles[best], threads)
        runtime = Runtime(replace(manifest, stop_ids=frozenset()), Device(threads=threads), costs)
        world, ids = _world(demo, runtime)
        figures: dict[str, Any] = {
            "threads": threads, "load_before": round(load, 2), "layers": layers, "feed_forward": feed_forward,
            "millions_of_multiplications_a_token": round(padded.millions_of_multiplications_a_token, 1),
            "finest_ms": finest_ms, "precision": best, "answer_tokens": _ANSWER_TOKENS, "rows": len(world.right),
            "pictures": len(set(world.groups.tolist())), "parts_ms": _parts(costs),
        }  # fmt: skip
        for name, mode in MODES.items():
            figures[name] = _mode(world, mode)
            click.echo(f"{name}: {figures[name]['auto']}")
        figures["whole_questions"] = _whole(runtime, world, ids, demo, pictures)
        click.echo(f"composed for whole: {figures['whole_questions']}")
    if not rehearse:
        command = f"python -m benchmarks.runtime.auto --threads {threads} --rounds {rounds} --pictures {pictures}"
        click.echo(keep("auto", command, load_after=round(os.getloadavg()[0], 2), **figures))


def _costs(bundle: Path, threads: int) -> tuple[Manifest, CostTable]:
    manifest = read_manifest(bundle)
    costs = read_costs(bundle, device_name("cpu", threads), manifest.sha256)
    assert costs is not None  # bench wrote it
    return manifest, costs


def _world(demo: Path, runtime: Runtime) -> tuple[World, list[str]]:
    """The test rows of the demo's labels, by picture, and their ids."""
    table = read_table(demo / "labels").test_rows
    table = table.take(np.argsort(table.groups, kind="stable"))
    router, costs = runtime.router, runtime.costs
    assert router is not None
    assert costs is not None
    assert costs.composed is not None
    known = read_metadata(GraphWalk(demo / "router" / "router.onnx"), demo / "router" / "router.onnx")
    probability, _, p_value = ask_graph(demo / "router" / "router.onnx", table, 0.0)
    seen = Seen(probability.astype(np.float64), is_strange(p_value, known["least_p_value"]), table.margins)
    nested = runtime.manifest.nested
    policy = Policy(router.costs, float(max(router.facts.costs)), known["escalation"], keeps_cache=nested)
    scores = table.scores.astype(np.float64)
    world = World(router, costs.composed, policy, seen, scores, table.groups, costs.answer_tokens, nested)
    return world, table.ids.tolist()


def _mode(world: World, asked: Callable[[World, tuple[str, float]], Point]) -> dict[str, Any]:
    """Every fixed scale, and `auto` at every price: as it is, and where it always chooses."""
    fixed = {m: asked(world, ("scale", m)) for m in world.router.offered}
    fronts = {
        name: {price: asked(some, ("price", price)) for price in _PRICES}
        for name, some in (("auto", world), ("always choosing", replace(world, may_settle=False)))
    }
    told = {name: compare(list(front.values()), fixed) for name, front in fronts.items()}
    return told | {
        "fixed": {str(m): _told(point) for m, point in fixed.items()},
        "prices": {f"{price:g}": _told(point) for price, point in fronts["auto"].items()},
    }


def _told(point: Point) -> dict[str, Any]:
    return {"right": round(point.right, 4), "ms": round(point.ms, 3), "shares": list(point.shares)}


def _whole(runtime: Runtime, world: World, ids: list[str], demo: Path, pictures: int) -> dict[str, Any]:
    """Whole questions about some pictures, in turn by every way: milliseconds as asked, and as they are composed."""
    by_id: dict[str, Row] = {row.id: row for row in read_rows(demo / "rows")}
    ways = [("scale", float(m)) for m in world.router.offered] + [("price", price) for price in _ASKED_WHOLE]
    picked = list(dict.fromkeys(world.groups.tolist()))[:pictures]
    rows = np.flatnonzero(np.isin(world.groups, picked))
    took: dict[tuple[Any, str, float], list[float]] = defaultdict(list)
    order = np.random.default_rng(0)
    _ask(runtime, [by_id[ids[rows[0]]]], ways[-1])
    for group in picked:
        asked = [by_id[ids[row]] for row in np.flatnonzero(world.groups == group)]
        for place in order.permutation(len(ways)).tolist():
            took[World.in_turn, *ways[place]] += _ask(runtime, asked, ways[place])
            took[World.alone, *ways[place]] += [_ask(runtime, [row], ways[place])[0] for row in asked[:3]]
    told: dict[str, Any] = {}
    some = world.rows(rows)
    for name, mode in MODES.items():
        for kind, value in ways:
            composed = mode(some, (kind, value)).ms
            whole = float(np.mean(took[mode, kind, value]))
            told[f"{name}, {kind} {value:g}"] = {
                "whole_ms": round(whole, 2), "composed_ms": round(composed, 2), "error": round(composed / whole - 1, 3),
            }  # fmt: skip
    return told


def _ask(runtime: Runtime, rows: list[Row], way: tuple[str, float]) -> list[float]:
    """Milliseconds of each question about one picture, asked one after another; the look counts to the first."""
    took, started = [], time.perf_counter()
    view = runtime.look(rows[0].image.read())  # type: ignore[union-attr]
    scale: Any = int(way[1]) if way[0] == "scale" else "auto"
    terms: Any = {"price": way[1]} if way[0] == "price" else {}
    for row in rows:
        view.ask(row.question, scale, max_new_tokens=_ANSWER_TOKENS, **terms)
        ended = time.perf_counter()
        took.append(1000 * (ended - started))
        started = ended
    return took


def _parts(costs: CostTable) -> dict[str, Any]:
    assert costs.composed is not None
    parts = costs.composed.usual
    points = {name: dict(getattr(parts, name)) for name in ("vision", "connector", "prefill", "token")}
    told: dict[str, Any] = {name: {str(at): round(ms, 3) for at, ms in found.items()} for name, found in points.items()}
    return told | {name: round(getattr(parts, name), 3) for name in ("image", "picture", "question", "router")}


def _mvlm(*arguments: object) -> None:
    words = [sys.executable, "-m", "mvlm_core.cli", *map(str, arguments)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
