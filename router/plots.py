"""The pictures of the report, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .evaluate import ROUTER, Evaluation
from .policy import hull

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROUTER_COLOUR, _FIXED_COLOUR, _OTHER_COLOUR = "#c8102e", "#222222", "#8a8f98"
_STYLES = {"lookup by task": "--", "question only": "-.", "image only": ":", "shuffled labels": (0, (1, 3))}


def draw(e: Evaluation, folder: Path) -> dict[str, Path]:
    """Write the plots into `folder` and return them by name."""
    from matplotlib.figure import Figure

    files = {}
    for name, (size, fill) in _PLOTS.items():
        figure = Figure(figsize=size, layout="constrained", dpi=110)
        fill(e, figure)
        files[name] = folder / f"{name}.png"
        figure.savefig(files[name])
    return files


def _accuracy(e: Evaluation, figure: Figure) -> None:
    """Accuracy against mean cost: fixed scales, their hull, the router with its intervals, baselines, oracle."""
    axes = figure.subplots()
    for policy in e.policies:
        cost, score = np.array(policy.curve).T
        style: dict[str, Any] = {"color": _OTHER_COLOUR, "lw": 1.2, "ls": _STYLES.get(policy.name, "-"), "zorder": 2}
        if policy.name == ROUTER:
            style = {"color": _ROUTER_COLOUR, "lw": 2.4, "zorder": 4}
        axes.plot(cost, 100 * score, label=policy.name, **style)
    costs, scores = hull(np.array(e.cost), np.array(e.ladder["all"]))
    axes.plot(costs, 100 * scores, color=_FIXED_COLOUR, lw=1.4, label="mix of fixed scales", zorder=3)
    axes.plot(e.cost, 100 * np.array(e.ladder["all"]), "o", color=_FIXED_COLOUR, ms=6, zorder=5)
    for m, cost, score in zip(e.scales, e.cost, e.ladder["all"], strict=True):
        axes.annotate(f"{m}", (cost, 100 * score), textcoords="offset points", xytext=(4, -13), fontsize=9)
    at = e.policy(ROUTER).at
    centre = np.array([100 * a.score for a in at])
    reach = np.array([[100 * (a.gain.value - a.gain.low), 100 * (a.gain.high - a.gain.value)] for a in at]).T
    axes.errorbar([a.mean_cost for a in at], centre, reach, fmt="s", ms=4, color=_ROUTER_COLOUR, capsize=3, zorder=6)
    axes.plot(
        *[[x] for x in (e.oracle[0], 100 * e.oracle[1])], "*", ms=13, color="#e0a100", label="oracle (with its luck)"
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(e.cost, [f"{c:g}" for c in e.cost])
    axes.set_xlabel(f"mean cost of a question ({e.cost_unit}, log scale)")
    axes.set_ylabel("right answers (%)")
    _plain(axes)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _chosen(e: Evaluation, figure: Figure) -> None:
    """Which scales the router takes at its default price, by kind."""
    axes = figure.subplots()
    names = [*sorted((n for n in e.chosen if n != "all"), key=lambda n: np.dot(e.chosen[n], e.cost)), "all"]
    left = np.zeros(len(names))
    shades = np.linspace(0.12, 0.85, len(e.scales))
    from matplotlib import colormaps

    for k, m in enumerate(e.scales):
        share = np.array([e.chosen[name][k] for name in names])
        axes.barh(names, 100 * share, left=left, color=colormaps["viridis"](1 - shades[k]), label=f"{m}")
        left += 100 * share
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of questions (%)")
    axes.legend(
        title="tokens", frameon=False, ncols=len(e.scales), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9
    )
    _plain(axes)
    axes.grid(False)


def _reliability(e: Evaluation, figure: Figure) -> None:
    """Do the probabilities mean what they say, scale by scale?"""
    all_axes = figure.subplots(1, len(e.scales), sharey=True, squeeze=False)[0]
    for axes, m in zip(all_axes, e.scales, strict=True):
        r = e.reliability[str(m)]
        axes.plot([0, 1], [0, 1], color=_OTHER_COLOUR, lw=1)
        axes.plot(r.probability, r.score, "o-", ms=3.5, lw=1.4, color=_ROUTER_COLOUR)
        axes.set_title(f"{m} tokens\nerror {r.error:.3f}", fontsize=9)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("said", fontsize=9)
        _plain(axes)
    all_axes[0].set_ylabel("was right")


def _plain(axes: Axes) -> None:
    axes.grid(color="#e6e8eb", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


_PLOTS = {
    "accuracy": ((8.2, 5.2), _accuracy),
    "chosen": ((8.2, 4.6), _chosen),
    "reliability": ((10.5, 2.7), _reliability),
}
