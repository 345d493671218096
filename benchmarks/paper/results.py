"""From finished cells to benchmarks/results/paper.json: figures by cell, differences, claims, oracle, router."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.cells import FAMILIES, Cell, Family, nested, specialist
from benchmarks.paper.claims import Claim, Found, claims, difference, nested_cells, over_specialists
from benchmarks.paper.compute import step_flops
from benchmarks.paper.oracle import needs, oracle_figures, router_share
from benchmarks.paper.stats import Asked, Estimate, read_asked, read_labelled, t_interval
from benchmarks.paper.train import CELL, LABELS
from benchmarks.paper.world import FLAT_KINDS, KINDS, SCALES, STEEP_KINDS, Size

_GROUPS = ("all", "flat", "steep", *KINDS)


def read_found(cells: Sequence[Cell], folder: Path) -> Found:
    """The cells that are finished. Raises `MvlmError` for one that is broken."""
    found = Found()
    for cell in cells:
        if (folder / cell.key / CELL).is_file():
            found.add(read_asked(folder / cell.key, cell))
    return found


def results(cells: Sequence[Cell], folder: Path, size: Size, costs: dict[str, Any] | None = None) -> dict[str, Any]:
    """Everything that paper.json holds besides the machine."""
    found = read_found(cells, folder)
    missing = [cell.key for cell in cells if not (folder / cell.key / CELL).is_file()]
    held, compute, routers = claims(found), _compute(cells, size), _routers(found, folder)
    told = {
        "scales": SCALES, "flat_kinds": FLAT_KINDS, "steep_kinds": STEEP_KINDS, "size": asdict(size),
        "missing": missing, "core_minutes": core_minutes(found),
        "cells": [_cell(asked) for several in found.cells.values() for asked in several],
        "means": list(_means(found)),
        "nested_minus_specialists": list(_nesting(found)),
        "nested_pool_minus_pool": list(_nested_pool(found)),
        "training_gflops_a_picture": compute,
        "claims": [asdict(claim) | {"verdict": claim.verdict} for claim in held],
        "oracle": _oracles(found), "router": routers,
        "granularity": {f: needs(asked) for f in FAMILIES if (asked := nested_cells(found, f))},
        "costs": costs, "summary": [
            *summary(held, missing), *_router_lines(routers), *_compute_lines(compute), *_cost_lines(costs)
        ],
    }  # fmt: skip
    return _rounded(told)


def _rounded(value: Any) -> Any:
    """Figures to five digits behind the point: more is noise."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def summary(held: Sequence[Claim], missing: Sequence[str]) -> list[str]:
    """Where this small world agrees with the papers and where not, line by line, from the verdicts alone."""
    lines = []
    for verdict in ("agrees", "differs", "undecided"):
        of_it = [claim for claim in held if claim.verdict == verdict]
        lines += [f"{verdict}: {len(of_it)} of {len(held)}", *(f"  {claim.line()}" for claim in of_it)]
    return [*lines, f"cells that are missing: {', '.join(missing) or 'none'}"]


def core_minutes(found: Found) -> float:
    """What all cells took of a core, training and asking."""
    spent = [
        one.facts["train_core_seconds"] + one.facts["ask_core_seconds"] for some in found.cells.values() for one in some
    ]
    return sum(spent) / 60


def _cell(asked: Asked) -> dict[str, Any]:
    """Right answers of one cell, by kind of question and scale."""
    kept = ("key", "scales", "steps", "losses", "train_core_seconds")
    right = {kind: asked.scores[asked.rows_of(kind)].mean(axis=0).round(4).tolist() for kind in ("all", *KINDS)}
    return {key: asked.facts[key] for key in kept} | {"right": right}


def _means(found: Found) -> Iterator[dict[str, Any]]:
    """Of each kind of cell the mean over seeds, with its interval over seeds."""
    for (family, name), several in found.cells.items():
        for kind in _GROUPS:
            by_seed = [one.scores[one.rows_of(kind)].mean(axis=0) for one in several]
            at = {
                str(m): {"mean": float(np.mean([s[k] for s in by_seed])),
                         "by_seed": t_interval(np.array([s[k] for s in by_seed]))}
                for k, m in enumerate(several[0].cell.scales)
            }  # fmt: skip
            yield {"family": family, "name": name, "kind": kind, "seeds": len(several), "at": at}


def _nesting(found: Found) -> Iterator[dict[str, Any]]:
    """The one model minus the specialists, at each scale and for kinds of question: same steps, and equal compute."""
    for family, short in (("pool", False), ("query", False), ("query", True)):
        for kind in ("all", "flat", "steep"):
            for m in SCALES:
                if gap := over_specialists(found, family, (m,), short=short, kind=kind):
                    told = {"family": family, "equal_compute": short, "kind": kind, "scale": m}
                    yield told | _plain(gap)


def _nested_pool(found: Found) -> Iterator[dict[str, Any]]:
    for kind in ("all", "flat", "steep"):
        for m in SCALES:
            pairs = found.pairs(("nested_pool", "nested"), ("pool", "nested"))
            if gap := difference(pairs, [m], kind=kind):
                yield {"kind": kind, "scale": m} | _plain(gap)


def _plain(gap: Estimate) -> dict[str, Any]:
    return asdict(gap)


def _compute(cells: Sequence[Cell], size: Size) -> list[dict[str, Any]]:
    """What training costs beside what it gives: GFLOPs of a picture in a step, times the steps in parts of a cell's."""
    alike = {(cell.family, cell.name): cell for cell in cells if cell.show}
    return [
        {"family": family, "name": name, "gflops": cell.compute / 1e9 * step_flops(
            family, cell.show, size.cell_questions, frozen_tower="vision_tower" in cell.frozen)}
        for (family, name), cell in alike.items()
    ]  # fmt: skip


def _router_lines(routers: dict[str, Any]) -> list[str]:
    """What the routers gain over mixing two scales of the same mean tokens, over seeds, price by price."""
    lines = []
    for family, seeds in routers.items():
        for at in zip(*(seed["at"] for seed in seeds), strict=True):
            gains = np.array([point["score"] - point["mix"] for point in at])
            spread = t_interval(gains)
            ends = f" [{100 * spread[0]:+.1f}, {100 * spread[1]:+.1f}]" if spread else ""
            shares = [point["share"] for point in at if point["share"] is not None]
            share = f"; of the oracle's, luck and all, {np.mean(shares):.2f}" if shares else ""
            lines.append(
                f"router: {family}, at {np.mean([point['mean_tokens'] for point in at]):.0f} mean tokens"
                f" {100 * gains.mean():+.1f}{ends} points over a mix of scales{share}"
            )
    return lines


def _compute_lines(compute: Sequence[dict[str, Any]]) -> list[str]:
    """What all specialists together cost to train, beside the one model."""
    cost = {(at["family"], at["name"]): at["gflops"] for at in compute}
    ways = ((family, short) for family, short in (("pool", False), ("query", False), ("query", True)))
    lines = []
    for family, short in ways:
        one = cost.get((family, nested(family)))
        each = [cost.get((family, specialist(m, short=short)), 0.0) for m in SCALES]
        if one and all(each):
            cut = " cut short" if short else ""
            times = sum(each) / one
            lines.append(f"compute: {family}, all specialists{cut} together cost {times:.2f} times the one model")
    return lines


def _cost_lines(costs: dict[str, Any] | None) -> list[str]:
    """How much less the coarsest scale costs than the finest, in tokens, FLOPs and time."""
    lines = []
    for model in (costs or {"models": []})["models"]:
        flops, ms = model["gflops"], model["ms"]
        lines.append(
            f"cost: {model['family']}, from {SCALES[-1]} tokens to {SCALES[0]} FLOPs fall {_fall(flops):.2f}-fold,"
            f" milliseconds {_fall(ms):.2f}-fold; of the decoder alone {_fall(flops, 'decoder'):.2f} and"
            f" {_fall(ms, 'decoder'):.2f}"
        )
    return lines


def _fall(parts: dict[str, list[float]], *of: str) -> float:
    totals = np.sum([parts[part] for part in of or parts], axis=0)
    return float(totals[-1] / totals[0])


def _oracles(found: Found) -> dict[str, Any]:
    return {f: asdict(oracle_figures(asked)) for f in FAMILIES if (asked := nested_cells(found, f))}


def _routers(found: Found, folder: Path) -> dict[str, Any]:
    """Of the families whose cells hold what a router may see."""
    held: dict[Family, list[Asked]] = {f: nested_cells(found, f) for f in FAMILIES}
    return {
        family: router_share(asked, [read_labelled(folder / one.cell.key, SCALES) for one in asked])
        for family, asked in held.items()
        if asked and all((folder / one.cell.key / LABELS).is_file() for one in asked)
    }
