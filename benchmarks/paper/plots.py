"""The figures as pictures: nesting, kinds against tokens and cost, ablations, the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is asked for

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLOURS = {"pool": "#1f5fa8", "query": "#b4531f", "nested_pool": "#2f7d4f"}
_GREYS = ("#222222", "#777777", "#aaaaaa")
_KINDS = plt.get_cmap("tab10")
_DPI = 110
# Student's interval of two values is wider than the plot.
_ENOUGH_SEEDS = 3


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Every plot whose figures are there, as paper_*.png."""
    drawn = {"nesting": _nesting, "ablations": _ablations, "oracle": _oracle, "needs": _needs}
    files = [_save(plot(results), folder / f"paper_{name}.png") for name, plot in drawn.items()]
    if results["costs"]:
        files.append(_save(_cost(results), folder / "paper_cost.png"))
    return files


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, dpi=_DPI)
    plt.close(figure)
    return file


class _Means:
    """The means over seeds, looked up."""

    def __init__(self, results: dict[str, Any]) -> None:
        self._by = {(m["family"], m["name"], m["kind"]): m for m in results["means"]}

    def line(self, axes: Axes, family: str, name: str, kind: str = "all", **style: Any) -> None:
        """Accuracy against tokens, in points, with the interval over seeds where there are several."""
        if told := self._by.get((family, name, kind)):
            tokens = [int(m) for m in told["at"]]
            value = 100 * np.array([at["mean"] for at in told["at"].values()])
            axes.plot(tokens, value, **style)
            if told["seeds"] >= _ENOUGH_SEEDS:
                low, high = 100 * np.array([at["by_seed"] for at in told["at"].values()]).T
                axes.fill_between(tokens, low, high, color=style.get("color"), alpha=0.12, linewidth=0)

    def points(self, axes: Axes, family: str, names: Sequence[str], kind: str = "all", **style: Any) -> None:
        """One model a point: each at its own scale."""
        found = [self._by[family, name, kind] for name in names if (family, name, kind) in self._by]
        for place, told in enumerate(found):
            (tokens, at), *_ = told["at"].items()
            shown = at["by_seed"] if told["seeds"] >= _ENOUGH_SEEDS else None
            span = 100 * np.array(shown or [at["mean"]] * 2)
            label = style["label"] if place == 0 else None
            value = 100 * at["mean"]
            error = np.abs(span - value)[:, None]
            axes.errorbar([int(tokens)], [value], yerr=error, **style | {"label": label}, capsize=3, linestyle="none")

    def value(self, family: str, name: str, kind: str, scale: int) -> float | None:
        told = self._by.get((family, name, kind))
        return told and 100 * told["at"][str(scale)]["mean"]


def _axes(axes: Axes, title: str, scales: Sequence[int], *, x: str = "visual tokens") -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(scales, [str(m) for m in scales])
    axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)


def _nesting(results: dict[str, Any]) -> Figure:
    means, scales = _Means(results), results["scales"]
    figure, panes = plt.subplots(1, 3, figsize=(11.5, 3.9), sharey=True, layout="constrained")
    for axes, family, name in zip(
        panes, ("pool", "query", "nested_pool"), ("nested", "uniform", "nested"), strict=True
    ):
        colour = _COLOURS[family]
        means.line(axes, family, name, color=colour, marker="o", label="one model for all scales")
        alone = [f"specialist-{m}" for m in scales]
        means.points(axes, family, alone, color=_GREYS[0], marker="s", label="one model for each, same steps")
        short = [f"short-{m}" for m in scales]
        means.points(axes, family, short, color=_GREYS[1], marker="x", label="one for each, equal compute in all")
        means.line(
            axes, family, "base", color=_GREYS[2], linestyle=":", marker=".", label="trained at the finest alone"
        )
        if family == "nested_pool":
            means.line(axes, "pool", "nested", color=_COLOURS["pool"], linestyle="--", label="pool")
        titles = {"pool": "pool (M3)", "query": "query (MQT)", "nested_pool": "nested_pool (pool, nested by prefix)"}
        _axes(axes, titles[family], scales)
        axes.legend(frameon=False, fontsize=8)
    panes[0].set_ylabel("right answers (%)")
    return figure


def _cost(results: dict[str, Any]) -> Figure:
    means, scales = _Means(results), results["scales"]
    figure, panes = plt.subplots(2, 3, figsize=(11.5, 7.2), sharey="row", layout="constrained")
    for row, (family, name) in zip(panes, (("pool", "nested"), ("query", "uniform")), strict=True):
        cost = next((c for c in results["costs"]["models"] if c["family"] == family), None)
        if cost is None:
            continue
        totals = {unit: np.sum([cost[unit][part] for part in cost[unit]], axis=0) for unit in ("gflops", "ms")}
        shown = {"visual tokens": scales, "GFLOPs of one question": totals["gflops"],
                 "milliseconds, one thread": totals["ms"]}  # fmt: skip
        for axes, (unit, xs) in zip(row, shown.items(), strict=True):
            for place, kind in enumerate((*results["flat_kinds"], *results["steep_kinds"])):
                ys = [means.value(family, name, kind, m) for m in scales]
                flat = kind in results["flat_kinds"]
                axes.plot(xs, ys, color=_KINDS(place), marker="o", markersize=4, linestyle="--" if flat else "-",
                          label=kind.replace("_", " "))  # fmt: skip
            if unit == "visual tokens":
                _axes(axes, family, scales)
            else:
                axes.set_xlim(left=0)
                axes.set_xlabel(unit)
                axes.grid(color="#e6e6e6")
                axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("right answers (%)")
    panes[0, 2].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def _ablations(results: dict[str, Any]) -> Figure:
    means, scales = _Means(results), results["scales"]
    figure, panes = plt.subplots(1, 4, figsize=(15, 3.9), sharey=True, layout="constrained")
    own = {"color": _COLOURS["pool"], "marker": "o", "label": "averages, all scales a step"}
    told: dict[str, dict[str, str]] = {
        "how patches become fewer, in training": {"spatial": "every k-th patch", "sequential": "the first patches"},
        "and only at inference": {"base": "averages", "untrained-spatial": "every k-th patch",
                                  "untrained-sequential": "the first patches"},
        "what is trained": {"drawn": "one scale a step", "frozen-language-model": "language model frozen",
                            "trained-tower": "tower trained as well"},
    }  # fmt: skip
    for axes, (title, lines) in zip(panes, told.items(), strict=False):
        means.line(axes, "pool", "nested", **own)
        for place, (name, label) in enumerate(lines.items()):
            means.line(axes, "pool", name, color=_KINDS(place + 1), marker="s", markersize=4, label=label)
        _axes(axes, f"pool: {title}", scales)
    means.line(panes[3], "query", "uniform", color=_COLOURS["query"], marker="o", markersize=4,
               label="uniform over even numbers")  # fmt: skip
    means.line(panes[3], "query", "sandwich", color=_KINDS(4), marker="s", markersize=4, label="sandwich")
    _axes(panes[3], "query: which m a step draws", scales)
    for axes in panes:
        axes.legend(frameon=False, fontsize=8)
    panes[0].set_ylabel("right answers (%)")
    return figure


def _oracle(results: dict[str, Any]) -> Figure:
    means = _Means(results)
    figure, panes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axes, (family, name) in zip(panes, (("pool", "nested"), ("query", "uniform")), strict=True):
        told = results["oracle"].get(family)
        if told is None:
            continue
        means.line(axes, family, name, color=_COLOURS[family], marker="o", label="one scale for all")
        axes.plot(told["mean_tokens"], 100 * told["score"], "*", markersize=13, color=_KINDS(2), label="oracle")
        if told["cross_sample_score"] is not None:
            axes.plot(told["cross_sample_tokens"], 100 * told["cross_sample_score"], "*",
                      markersize=13, markerfacecolor="white", color=_KINDS(2),
                      label="oracle, chosen by the other seeds")  # fmt: skip
        for place, seed in enumerate(results["router"].get(family, [])):
            at = seed["at"]
            axes.plot([p["mean_tokens"] for p in at], [100 * p["score"] for p in at], "d", color=_KINDS(3),
                      markersize=5, label="router, at three prices, each seed" if place == 0 else None)  # fmt: skip
        _axes(axes, family, results["scales"], x="mean visual tokens")
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    panes[0].set_ylabel("right answers (%)")
    return figure


def _needs(results: dict[str, Any]) -> Figure:
    """Shares of the rows of each kind by the scale from which on they are right."""
    figure, panes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    scales = results["scales"]
    shades = plt.get_cmap("viridis")(np.linspace(0.1, 0.9, len(scales)))
    for axes, family in zip(panes, ("pool", "query"), strict=True):
        kinds = results["granularity"].get(family, [])
        names = [kind["name"].replace("_", " ") for kind in kinds]
        left = np.zeros(len(kinds))
        for place, m in enumerate(scales if kinds else ()):
            share = 100 * np.array([kind["stable_from"][place] for kind in kinds])
            axes.barh(names, share, left=left, color=shades[place], label=f"from {m}")
            left += share
        axes.barh(names, 100 - left, left=left, color="#dddddd", label="never, or not stably")
        axes.set_title(family, loc="left", fontsize=10)
        axes.set_xlabel("share of the questions (%)")
        axes.spines[["top", "right"]].set_visible(False)
    panes[0].invert_yaxis()  # the other one's goes with it
    panes[0].legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure
