"""Real weights see the drawn world: SmolLM2 with a tower from nothing, trained and labelled in a few minutes of a GPU.

What comes back is `real_labels.tar`: the labels folder, whose router is fitted where there is time, and metrics.jsonl.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.gpu.decode import SHAPE, TINY
from benchmarks.gpu.record import Record, Told
from mvlm_core.backbones.byte_tokenizer import train_tokenizer
from mvlm_core.checkpoints.run_folder import Precision
from mvlm_core.cli import main as mvlm
from mvlm_core.label.put_together import ladder
from mvlm_core.label.sweep import Sweep, label
from mvlm_core.train.build import resolve_config
from mvlm_core.train.config import read_config, run_scales
from mvlm_core.train.recipe import train

_RECIPE = Path(__file__).with_suffix(".yaml")
# Which part of the training time the first stage gets; it is also a bound, as each patch is soon told.
_PATCHES_SHARE = 0.2
# What labelling may take for each picture, what reading the rows and starting takes, and packing up at the end.
_LABEL_S, _START_S, _END_S = 0.06, 25, 20
_SAMPLES, _LOSSES, _FEW = 24, 20, 32
_SPEEDS = ("pictures_per_s", "tokens_per_s", "seconds")


@dataclass(frozen=True)
class Size:
    """Pictures of each split, steps of a trial, and how the recipe is cut down for a rehearsal."""

    train: int = 8_000
    val: int = 700
    test: int = 700
    trial: int = 16
    workers: int = 6
    overrides: tuple[str, ...] = ()


_REHEARSED = Size(
    24, 4, 4, 2, 0,
    ("model.vision.hidden_size=32", "model.vision.intermediate_size=32", "model.vision.num_hidden_layers=1",
     "model.vision.num_attention_heads=2", "stages.0.pictures=4", "stages.1.pictures=4", "precision=float32"),
)  # fmt: skip


class Clock:
    """When each step of each stage ended, as a progress bar would be told."""

    def __init__(self) -> None:
        self.ends: dict[str, list[float]] = {}

    def __call__(self, stage: str, steps: int) -> Callable[[str], None]:
        ends = self.ends[stage] = [time.perf_counter()]
        return lambda told: ends.append(time.perf_counter())

    def seconds(self) -> dict[str, float]:
        """Of a step of each stage, once it runs evenly: the waiting for pictures is among it."""
        return {
            stage: median(late - early for early, late in pairwise(ends[len(ends) // 3 :]))
            for stage, ends in self.ends.items()
        }


def run(record: Record, told: Told) -> None:
    """Draw, try a few steps, train as many as there is time for, label, pack up."""
    size = _REHEARSED if told.rehearse else Size()
    with tempfile.TemporaryDirectory() as folder:
        place, rows, clock = Path(folder), told.rows or Path(folder) / "rows", Clock()
        with _timed(record, "drawing"):
            if not told.rows:
                draw(rows, size.train, size.val, size.test)
            weights = told.weights or _random_weights(place / "weights", rows, tiny=told.rehearse)
        overrides = (f"model.text.name={weights}", f"workers={size.workers}", *size.overrides)
        with _timed(record, "trial"):  # on few pictures, which are read at once
            draw(place / "few" / "rows", _FEW, 1, 1)
            few = (f"rows={place / 'few' / 'rows'}", *overrides)
            learn(place, few, (size.trial, size.trial), "trial", clock)
        left = told.seconds - record.elapsed - _START_S - _END_S - _LABEL_S * (size.val + size.test)
        steps = steps_for(0 if told.rehearse else left, clock.seconds(), least=size.trial)
        record.add(weights="given" if told.weights else "random", step_seconds=clock.seconds(), steps=steps)
        with _timed(record, "training"):
            trained = learn(place, (f"rows={rows}", *overrides), steps, "run", Clock())
        record.add(learned=summary(trained / "metrics.jsonl"))
        with _timed(record, "labelling"):
            labels = sweep(trained, rows, place / "labels", told.device)
        record.add(ladder=ladder(labels), of_each_task=by_task(labels), answers=samples(labels))
        with tarfile.open(told.out / "real_labels.tar", "w") as tar:
            for file in (*sorted(labels.iterdir()), trained / "metrics.jsonl", trained / "train.yaml"):
                tar.add(file, file.name)


def learn(place: Path, overrides: Sequence[str], steps: Sequence[int], name: str, clock: Clock) -> Path:
    """Train the recipe for some steps of each stage, into a folder of that name in `place`."""
    lengths = (f"stages.{n}.steps={count}" for n, count in enumerate(steps))
    config = resolve_config(read_config(_RECIPE, (*overrides, *lengths)))
    train(config, place / name, resume=False, overwrite=False, progress=clock, say=print)
    return place / name


def steps_for(seconds: float, of_a_step: Mapping[str, float], *, least: int) -> list[int]:
    """How many steps of the two stages fit into some seconds."""
    shares = (_PATCHES_SHARE, 1 - _PATCHES_SHARE)
    return [max(least, int(share * seconds / step)) for share, step in zip(shares, of_a_step.values(), strict=True)]


def summary(metrics: Path) -> dict[str, Any]:
    """The losses along each stage, and how fast it went."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for line in map(json.loads, metrics.read_text().splitlines()):
        stages.setdefault(line["stage"], []).append(line)
    return {
        stage: {
            "steps": len(lines), "memory_mib": lines[-1]["memory_mib"],
            "losses": _means([line["loss"] for line in lines]),
            **{key: float(np.median([line[key] for line in lines])) for key in _SPEEDS},
        }
        for stage, lines in stages.items()
    }  # fmt: skip


def _means(values: Sequence[float]) -> list[float]:
    """A long list told by the means of its parts."""
    return [float(part.mean()) for part in np.array_split(values, min(_LOSSES, len(values)))]


def sweep(run: Path, rows: Path, out: Path, device: str) -> Path:
    """Label val and test, many pictures at once: a pass is as short as its launches allow."""
    precision: Precision = "bfloat16" if device == "cuda" else "float32"
    told = Sweep(run, rows, run_scales(run), ("val", "test"), pictures_per_part=350, device=device, precision=precision)
    label(told, out, overwrite=False, progress=lambda done, of: None)
    return out


def by_task(labels: Path) -> dict[str, dict[int, float]]:
    """The ladder of each kind of question."""
    table = pq.read_table(labels / "labels.parquet", columns=["task", "num_visual_tokens", "score"])
    tasks, scales, scores = (np.asarray(column) for column in table.columns)
    return {
        str(task): {int(m): float(scores[(tasks == task) & (scales == m)].mean()) for m in np.unique(scales)}
        for task in np.unique(tasks)
    }


def samples(labels: Path) -> list[dict[str, Any]]:
    """Some questions with what was answered at each scale, from all over the table."""
    found: dict[str, dict[str, Any]] = {}
    for line in pq.read_table(labels / "labels.parquet").to_pylist():
        row = found.setdefault(line["id"], {"id": line["id"], "task": line["task"], "right": line["answer"]})
        row[str(line["num_visual_tokens"])] = line["prediction"]
    return list(found.values())[:: max(1, len(found) // _SAMPLES)][:_SAMPLES]


def draw(rows: Path, train: int, val: int, test: int) -> None:
    mvlm.run(["data", "scenes", "--out", str(rows), "--train", str(train), "--val", str(val), "--test", str(test)])


def _random_weights(folder: Path, rows: Path, *, tiny: bool) -> Path:
    """A language model of the same shape that knows nothing, for when none is given: its time is the same."""
    tokenizer = train_tokenizer((rows / "rows.jsonl").read_text().splitlines()[:2000])
    shape = {**SHAPE, "vocab_size": max(SHAPE["vocab_size"], len(tokenizer))}
    config = AutoConfig.for_model("llama", **(TINY | {"vocab_size": len(tokenizer)} if tiny else shape))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def _timed(record: Record, part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    record.add(parts=record.figures.get("parts", {}) | {part: round(time.perf_counter() - start, 1)})
