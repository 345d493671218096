"""The pictures of the report, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from router.policy import Floats, best_mix

from .evaluate import ESCALATING, ROUTER, Evaluation
from .summary import tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROUTER_COLOUR, _FIXED_COLOUR, _OTHER_COLOUR, _ORACLE_COLOUR = "#c8102e", "#222222", "#8a8f98", "#e0a100"
_STYLES: dict[str, dict[str, Any]] = {
    ROUTER: {"color": _ROUTER_COLOUR, "lw": 2.4, "zorder": 4},
    "router, one look": {"color": "#e57373", "lw": 1.4, "ls": "--"},
    ESCALATING: {"color": "#e57373", "lw": 1.4, "ls": ":"},
    "lookup by task": {"color": "#2b6cb0", "lw": 1.4, "ls": "--"},
    "question only": {"color": "#2f855a", "lw": 1.4, "ls": "-."},
    "image only": {"color": "#b7791f", "lw": 1.4, "ls": ":"},
    "picture size": {"color": "#805ad5", "lw": 1.4, "ls": "-."},
    "nearest neighbours": {"color": "#0d9488", "lw": 1.4, "ls": (0, (5, 2))},
    "shuffled labels": {"color": _OTHER_COLOUR, "lw": 1.4, "ls": (0, (1, 3))},
}
_STEPS = 400
_LEAST_BARS = 6


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
    """Accuracy against mean cost: fixed scales and their mixes, the router with its intervals, baselines, oracle."""
    axes = figure.subplots()
    fixed = 100 * np.array(e.ladder["all"])  # (K,)
    reached = np.geomspace(e.cost[0], e.cost[-1], _STEPS)
    mixes = best_mix(np.array(e.cost), np.tile(fixed, (_STEPS, 1)), reached)
    for policy in e.shown:
        cost, score = joined(*np.array(policy.curve).T)
        axes.plot(cost, 100 * score, label=policy.name, **_STYLES[policy.name])
    axes.plot(reached, mixes, color=_FIXED_COLOUR, lw=1.4, label="mix of fixed scales", zorder=3)
    axes.plot(e.cost, fixed, "o", color=_FIXED_COLOUR, ms=6, zorder=5)
    for m, *point in zip(e.scales, e.cost, fixed, strict=True):
        axes.annotate(f"{m}", (point[0], point[1]), textcoords="offset points", xytext=(4, -13), fontsize=9)
    at = e.policy(ROUTER).at
    spent = [a.mean_cost for a in at]
    low, high = ([100 * (a.score + getattr(a.gain, end) - a.gain.value) for a in at] for end in ("low", "high"))
    axes.fill_between(spent, low, high, color=_ROUTER_COLOUR, alpha=0.12, lw=0)
    centre = np.array([100 * a.score for a in at])
    reach = np.array([[100 * (a.gain.value - a.gain.low), 100 * (a.gain.high - a.gain.value)] for a in at]).T
    axes.errorbar([a.mean_cost for a in at], centre, reach, fmt="s", ms=4, color=_ROUTER_COLOUR, capsize=3, zorder=6)
    oracle = e.cross_sample_oracle or e.oracle
    luck = "without its luck" if e.cross_sample_oracle else "with its luck"
    cost, score = joined(*np.array(oracle.curve).T)
    axes.plot(cost, 100 * score, color=_ORACLE_COLOUR, lw=1.2, ls="--")
    axes.plot(oracle.mean_cost, 100 * oracle.score, "*", ms=13, color=_ORACLE_COLOUR, label=f"oracle ({luck})")
    if e.cascade:
        spent, right = np.array([(point.mean_cost, 100 * point.score) for point in e.cascade]).T
        axes.plot(spent, right, "^", ms=6, color="#6b46c1", label="cascade on the first token", zorder=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(e.cost, [f"{c:g}" for c in e.cost])
    axes.set_xlabel(f"mean cost of a question ({e.cost_unit}, log scale)")
    axes.set_ylabel(f"{e.measures} (%)")
    _plain(axes)
    axes.legend(frameon=False, fontsize=9, loc="best")


def joined(cost: Floats, score: Floats) -> tuple[Floats, Floats]:
    """Operating points with the mixes of neighbours between them: linear in cost, hence curved on a log axis."""
    order = np.argsort(cost)
    between = np.union1d(np.geomspace(cost.min(), cost.max(), _STEPS), cost)
    return between, np.interp(between, cost[order], score[order])


def _chosen(e: Evaluation, figure: Figure) -> None:
    """Which scales the router takes at its default price, by kind."""
    from matplotlib import colormaps

    axes = figure.subplots()
    names = [*sorted((n for n in e.chosen if n != "all"), key=lambda n: np.dot(e.chosen[n], e.cost)), "all"]
    left = np.zeros(len(names))
    shades = colormaps["viridis"](np.linspace(0.88, 0.15, len(e.scales)))
    for k, m in enumerate(e.scales):
        share = np.array([e.chosen[name][k] for name in names])
        axes.barh(names, 100 * share, left=left, color=shades[k], label=f"{m}")
        left += 100 * share
    axes.set_xlim(0, 100)
    beside = max(_LEAST_BARS - len(names), 0) / 2  # a bar alone is not as high as the plot
    axes.set_ylim(-0.6 - beside, len(names) - 0.4 + beside)
    axes.set_xlabel("share of questions (%)")
    axes.legend(
        title="scale" if e.tile_tokens else "tokens",
        frameon=False,
        ncols=len(e.scales),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        fontsize=9,
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
        axes.set_title(f"{tokens(m)}\nerror {r.error:.3f}", fontsize=9)
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
