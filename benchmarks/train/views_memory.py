"""Memory of a training step by the number of views that its pictures have: `python -m benchmarks.train.views_memory`.

The recipe of the sheets, a few steps in a process of its own for each scale, on sheets of sixteen tiles alone; the
memory is the most that the process ever held, less what it held before the first step of the smallest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

from benchmarks.machine import keep
from mvlm_core.scenes.large import compose, paint, questions_of

SCALES = ("16", "4@4", "16@4", "4@16", "16@16")
_PICTURES, _STEPS = 4, 2
_SIZE = (256, 256)
_RECIPE = Path(__file__).parents[2] / "mvlm_core" / "train" / "recipes" / "large.yaml"


@click.command()
@click.option("--pictures", default=_PICTURES, show_default=True, help="Of a step.")
def main(pictures: int) -> None:
    """Train a few steps at each scale and keep what they took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = drawn(folder / "rows", 2 * pictures)
        found = [measured(folder, rows, scale, pictures) for scale in SCALES]
    for one in found:
        click.echo(f"{one['scale']:>6}: {one['views']:>2} views, {one['memory_mib']} MiB")
    click.echo(keep("views_memory", "python -m benchmarks.train.views_memory", pictures=pictures, scales=found))


def drawn(folder: Path, count: int) -> Path:
    """A rows folder of sheets of sixteen tiles."""
    folder.mkdir()
    lines, seed = [], 0
    while len(lines) < count:
        random = np.random.default_rng(seed)
        sheet, seed = compose(random), seed + 1
        if sheet.size != _SIZE:
            continue
        paint(sheet, random).save(folder / f"{seed}.png")
        asked = questions_of(sheet, random, held_out=False)
        turns = [{"user": one.text, "assistant": one.answer} for one in asked]
        lines.append(json.dumps({"id": str(seed), "images": [f"{seed}.png"], "texts": turns, "split": "train"}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


def measured(folder: Path, rows: Path, scale: str, pictures: int) -> dict[str, object]:
    """Steps at one scale in a process of its own."""
    stage = {"name": "answers", "steps": _STEPS, "pictures": pictures, "show": [scale], "lr": 1e-3}
    out = folder / f"run-{scale}"
    told = subprocess.run(
        [sys.executable, "-m", "mvlm_core.cli", "train", str(_RECIPE), f"rows={rows}", f"stages={json.dumps([stage])}",
         "--out", str(out)],
        capture_output=True, text=True, check=False, timeout=3600,
    )  # fmt: skip
    if told.returncode:
        raise click.ClickException(told.stderr.strip())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "memory_mib" in line]
    tiles = int(scale.partition("@")[2] or 0)
    return {"scale": scale, "views": 1 + tiles, "memory_mib": max(step["memory_mib"] for step in steps)}


if __name__ == "__main__":
    main()
