"""The demo of sheets with tiles: its ladder, its router, and whether more tiles with fewer tokens each are worth more.

`python -m benchmarks.router.large [--seed 1]`. The claim is M3's (arXiv 2405.17430, table 2): at about as many tokens,
many tiles with few tokens each against few tiles with many.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from benchmarks.machine import RESULTS, keep
from export.runtime.views.scale import Scale
from mvlm_core.commands.demo import Demo
from mvlm_core.commands.demo_size import REHEARSAL, SHEETS
from router.labels import read_table
from router.metrics import Resamples, interval
from router.table import Table

# More tiles with fewer tokens each, and fewer tiles with more: about as many tokens on a picture that has all tiles.
PAIRS = (("4@16", "16@4"), ("16@16", "64@4"))
_KEPT = ("verdict", "claims", "scales", "cost", "tile_tokens", "ladder", "steepness", "policies", "oracle",
         "picture_tasks", "picture_gain", "picture_mean", "not_learned", "default_price", "default", "rows",
         "groups")  # fmt: skip
_COLOURS = ("#8a8f98", "#2b6cb0", "#c8102e")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-large"), show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--rehearse", is_flag=True, help="A few pictures and steps; its figures are not kept.")
@click.option("--made", is_flag=True, help="Keep the figures of what lies in OUT, without its times.")
def main(out: Path, seed: int, rehearse: bool, made: bool) -> None:
    """Run the demo of sheets into OUT and keep its figures."""
    if not made:
        Demo(out, "pool", seed, REHEARSAL if rehearse else SHEETS, large=True).run(overwrite=True)
    if not rehearse:
        command = f"python -m benchmarks.router.large --seed {seed}" + (" --made" if made else "")
        click.echo(f"{keep_figures(out, seed, command, timed=not made)}")


def keep_figures(out: Path, seed: int, command: str, *, timed: bool) -> Path:
    """Take the figures and the plot of a finished demo over into results/."""
    report = json.loads((out / "report" / "report.json").read_text())
    seconds = json.loads((out / "demo.json").read_text())["seconds"] if timed else None
    figures = {key: report[key] for key in _KEPT}
    for policy in figures["policies"]:
        del policy["curve"]
    table = read_table(out / "labels").test_rows
    tokens = tokens_of(out / "labels", table)
    name = f"large_pool_seed{seed}"
    draw(table, tokens, RESULTS / f"{name}_tiles.png")
    known = json.loads((out / "labels" / "labels.json").read_text())
    labelled = {"rows": known["counts"]["rows"], "max_rows": known["max_rows"]}
    return keep(
        name, command, seconds=seconds, trained=_trained(out / "run" / "metrics.jsonl"), labelled=labelled,
        tokens=tokens.mean(axis=0).tolist(),
        more_tiles=[of for pair in PAIRS for of in against(table, tokens, *pair)], **figures,
    )  # fmt: skip


def tokens_of(labels: Path, table: Table) -> np.ndarray:
    """What the language model reads of each row's picture at each scale: (n, K)."""
    lines = pq.read_table(labels / "labels.parquet", columns=["id", "scale", "num_visual_tokens"]).to_pylist()
    told = {(line["id"], line["scale"]): line["num_visual_tokens"] for line in lines}
    return np.array([[told[str(name), str(scale)] for scale in table.scales] for name in table.ids], np.float64)


def against(table: Table, tokens: np.ndarray, many: str, few: str) -> list[dict[str, Any]]:
    """Many tiles with few tokens over few tiles with many, in points, paired by picture: on all pictures, and on those
    that have more tiles than `few` shows."""
    a, b = table.scales.index(many), table.scales.index(few)
    has_more = tokens[:, a] / (Scale.parse(many).tokens or 1) > tokens[:, b] / (Scale.parse(few).tokens or 1)
    found = []
    for name, rows in (("all", np.ones(len(table), bool)), ("that have more tiles", has_more)):
        difference = table.scores[rows, a] - table.scores[rows, b]
        gain = interval(Resamples(table.groups[rows]).mean(difference))
        found.append({
            "many": many, "few": few, "pictures": name, "rows": int(rows.sum()),
            "tokens": [float(tokens[rows, k].mean()) for k in (a, b)],
            "cost": [float(table.costs.take(rows).mean()[k]) for k in (a, b)],
            "right": [float(table.scores[rows, k].mean()) for k in (a, b)],
            "difference": {"value": gain.value, "low": gain.low, "high": gain.high},
        })  # fmt: skip
    return found


def draw(table: Table, tokens: np.ndarray, file: Path) -> None:
    """Right answers against the tokens that are read, a line for each number of tiles; and against the whole cost."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained", dpi=110)
    right = 100 * table.scores.mean(axis=0)
    parsed = [Scale.parse(scale) for scale in table.scales]
    for axes, x, what in zip(
        figure.subplots(1, 2, sharey=True), (tokens.mean(axis=0), table.costs.mean()),
        ("tokens that the language model reads", "cost: tokens, and the encoding of tiles"), strict=True,
    ):  # fmt: skip
        for colour, tiles in zip(_COLOURS, sorted({scale.tiles or 0 for scale in parsed}), strict=False):
            line = sorted((x[k], right[k], str(parsed[k])) for k in range(len(parsed)) if parsed[k].tiles == tiles)
            axes.plot([p[0] for p in line], [p[1] for p in line], "o-", color=colour,
                      label=f"up to {tiles} tiles" if tiles else "overview alone")  # fmt: skip
            for at, score, word in line:
                axes.annotate(word, (at, score), textcoords="offset points", xytext=(4, -12), fontsize=8)
        axes.set_xscale("log", base=2)
        axes.set_xlabel(f"{what} (mean, log scale)")
        axes.grid(color="#e6e8eb", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("right answers (%)")
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(file)


def _trained(metrics: Path) -> dict[str, int]:
    """How many steps each stage learned."""
    lines = map(json.loads, metrics.read_text().splitlines())
    return dict(Counter(line["stage"] for line in lines if "step" in line and "seconds" in line))


if __name__ == "__main__":
    main()
