"""What a reader takes of each picture of 576 patches where the language model is wide, beside the cheapest answer.

`python -m benchmarks.router.reader_width`: for the widths of a language model of half a billion weights and of one of
seven billion, one thread's processor time of the reader's part that is run once a picture (patches averaged to its
grid, then its graph), and of the least that an answer takes: the products of all layers for one visual token and a
short question, and of one more step. Weights are random; attention, norms and the vision tower are left out of the
answer, so that the reader's share is rather said too large.

Letters: P patches, D width of the language model, w numbers kept of a patch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.machine import keep
from export.runtime.backends.onnx import Device, open_session
from export.runtime.routing.reading import read_patches, read_side
from export.runtime.routing.router_folder import READER_FILE
from router.estimators.reader import PROJECTED, Reader, grid_sides
from router.estimators.reader_shape import Shape
from router.graph.reader import picture_graph

_SCALES, _PATCHES, _KEPT = (1, 9, 36, 144, 576), 576, 128
# A prompt's tokens beside one visual token.
_PROMPT = 32
# More than this of the cheapest answer's time, and the projection belongs into the vision graph.
MOST = 0.01


@dataclass(frozen=True)
class Width:
    """Sizes of a language model: widths of the residual stream, of keys and values, and of the MLP; layers; words."""

    name: str
    hidden: int
    key_values: int
    mlp: int
    layers: int
    vocabulary: int


WIDTHS = (
    Width("Qwen2.5-0.5B", 896, 128, 4864, 24, 151936),
    Width("Vicuna-7B", 4096, 4096, 11008, 32, 32000),
)


def random_reader(width: int, seed: int = 0) -> Reader:
    """A reader of random weights for patches (P, D)."""
    from router.estimators.reader_training import Network, arrays

    random = np.random.default_rng(seed)
    made = Reader(_SCALES)
    made.shape_ = Shape(grid_sides(read_side(24), _SCALES), _KEPT, 8, len(_SCALES))
    weights = arrays(Network(made.shape_, 0.0))
    made.projection_ = np.linalg.qr(random.standard_normal((width, _KEPT)))[0].astype(np.float32)
    made.wide_ = {name: (made.projection_ @ weights[name].T).astype(np.float16) for name in PROJECTED}
    made.weights_, made.n_features_in_ = weights, 8
    made.mean_, made.per_std_ = np.zeros(8, np.float32), np.ones(8, np.float32)
    return made


def picture_part(width: int, rounds: int) -> dict[str, float]:
    """Milliseconds of one thread: patches averaged to the reader's grid, and the graph that reads them; its bytes."""
    graph = picture_graph(random_reader(width))
    words = np.random.default_rng(1).standard_normal((_PATCHES, width)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / READER_FILE
        file.write_bytes(graph.SerializeToString())
        session = open_session(file, Device(threads=1))
        patches = read_patches(words)[None]
        return {
            "averaging_ms": median_ms(lambda: read_patches(words), rounds),
            "graph_ms": median_ms(lambda: session.run(["picture"], {"patches": patches}), rounds),
            "bytes": file.stat().st_size,
        }


def least_answer(of: Width, rounds: int) -> dict[str, float]:
    """Milliseconds of one thread that an answer takes at the least: a prompt read at one visual token, and a step."""
    h, m = of.hidden, of.mlp
    shapes = [(h, h), (h, of.key_values), (h, of.key_values), (h, h), (h, m), (h, m), (m, h)]
    some = np.random.default_rng(2).standard_normal(1 << 16).astype(np.float32)
    found = {}
    for name, rows in (("prompt_ms", 1 + _PROMPT), ("step_ms", 1)):
        layer = sum(_product_ms(rows, shape, some, rounds) for shape in shapes)
        head = _product_ms(1, (h, of.vocabulary), some, rounds)
        found[name] = of.layers * layer + head
    return found


def _product_ms(rows: int, shape: tuple[int, int], some: np.ndarray, rounds: int) -> float:
    x, weight = np.resize(some, (rows, shape[0])), np.resize(some, shape)
    return median_ms(lambda: x @ weight, rounds)


def median_ms(work: Callable[[], Any], rounds: int) -> float:
    """Of this thread's processor time; the first time does not count."""
    taken = []
    for _ in range(rounds + 1):
        start = time.thread_time()
        work()
        taken.append(time.thread_time() - start)
    return 1e3 * float(np.median(taken[1:]))


def measured(of: Width, rounds: int) -> dict[str, Any]:
    """One width: both parts, and the share that the reader's is of the answer."""
    with threadpool_limits(1):
        picture, answer = picture_part(of.hidden, 10 * rounds), least_answer(of, rounds)
    share = (picture["averaging_ms"] + picture["graph_ms"]) / sum(answer.values())
    return {"width": of.hidden, "reader": picture, "least_answer": answer, "share": share}


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Times that each product is taken.")
def main(rounds: int) -> None:
    """Measure both widths and keep the figures."""
    found = {of.name: measured(of, rounds) for of in WIDTHS}
    for name, one in found.items():
        click.echo(f"{name}: {100 * one['share']:.2f} % of the cheapest answer")
    command = "python -m benchmarks.router.reader_width"
    click.echo(keep("reader_width", command, patches=_PATCHES, prompt=_PROMPT, most=MOST, widths=found))


if __name__ == "__main__":
    main()
