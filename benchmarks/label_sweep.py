"""Labelling at five scales beside labelling at the finest alone: `python benchmarks/label_sweep.py --demo demo`.

The sweep encodes each picture once, and every question of it reads the same visual tokens, so what remains is the
language model's work. The limit is what that work alone would allow: the visual tokens and the questions' tokens of
all scales, over those of the finest, with the tower and the features counted once for both.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import click
import torch
from machine import keep

from mvlm_core.config import run_scales
from mvlm_core.dataset import group_rows
from mvlm_core.label import Sweep, label
from mvlm_core.processing import prompt_of
from mvlm_core.rows import read_rows
from mvlm_core.runs import load_run


@click.command()
@click.option("--demo", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--split", default="val", show_default=True)
def main(demo: Path, rounds: int, split: str) -> None:
    """Label in turns at the finest scale and at all, and keep how they compare."""
    scales = run_scales(demo / "run")
    sweeps = {"finest": (scales[-1],), "all": scales}
    seconds: dict[str, list[float]] = {name: [] for name in sweeps}
    with click.progressbar(range(rounds), label="labelling in turns") as bar, tempfile.TemporaryDirectory() as folder:
        for n in bar:
            for name, shown in sweeps.items():
                sweep = Sweep(demo / "run", demo / "rows", shown, (split,))
                start = time.perf_counter()
                label(sweep, Path(folder) / f"{name}{n}", overwrite=False, progress=lambda done, whole: None)
                seconds[name].append(time.perf_counter() - start)
    taken = {name: median(times) for name, times in seconds.items()}
    ratio = taken["all"] / taken["finest"]
    shared, tokens = once_for_all(demo, split), read_tokens(demo, split, scales)
    limit = (shared + (taken["finest"] - shared) * tokens["all"] / tokens["finest"]) / taken["finest"]
    click.echo(f"{len(scales)} scales take {ratio:.2f} times the finest alone; the tokens alone would take {limit:.2f}")
    figures = {"scales": list(scales), "split": split, "rounds": rounds, "seconds": seconds, "ratio": ratio}
    command = "python benchmarks/label_sweep.py"
    click.echo(keep("label_sweep", command, **figures, limit=limit, shared_seconds=shared, tokens=tokens))


def once_for_all(demo: Path, split: str) -> float:
    """Seconds that go into opening and encoding the pictures, whatever the number of scales."""
    model, processor = load_run(demo / "run")
    groups = group_rows(row for row in read_rows(demo / "rows") if row.split == split)
    start = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(groups), 32):
            pixels = processor.image_processor([group.pictures[0].read() for group in groups[first : first + 32]])
            model.encode_images(pixels["pixel_values"])
    return time.perf_counter() - start


def read_tokens(demo: Path, split: str, scales: tuple[int, ...]) -> dict[str, int]:
    """Tokens that the language model reads, answers left out: a picture once a scale, each question once a scale."""
    _, processor = load_run(demo / "run")
    prompt = prompt_of(processor)
    groups = group_rows(row for row in read_rows(demo / "rows") if row.split == split)
    asked = sum(len(prompt.ids(row.question, 1, processor.image_token_id)) for group in groups for row in group.rows)
    finest = len(groups) * scales[-1] + asked
    return {"finest": finest, "all": len(groups) * sum(scales) + len(scales) * asked}


if __name__ == "__main__":
    main()
