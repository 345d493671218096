"""A fitted router -> router/: the graph, held against the estimator on every row, and what is known of the fit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from export.runtime.artefact import describe, sha256_file, write_json
from export.runtime.errors import CheckFailed
from export.runtime.routing.router_folder import READER_FILE, ROUTER_FILE
from router.estimators.reader import Reader
from router.graph.ask import ask_graph
from router.graph.decision import router_graph
from router.graph.reader import picture_graph
from router.table import Table

from .fit import DEFAULT_LOSS, Fitted, seen_by
from .risk_bound import RiskBound

PARITY = 1e-5
OUT_OF_FOLD = "out_of_fold.parquet"
# Of so many rows the probabilities travel, for costs and scales that are replaced on the device.
_VALIDATION_ROWS = 2000
# A budget is met to about the step between two prices.
_PRICES = np.concatenate([[0.0], np.geomspace(1e-4, 20, 1600)])


def write_router(folder: Path, fitted: Fitted, table: Table, labels_sha256: str) -> dict[str, Any]:
    """Write router.onnx, router.json, report.json and out_of_fold.parquet into an empty folder, and reader.onnx where
    what was fitted reads pictures.

    Raises `CheckFailed` when the graph and the estimator differ by more than `PARITY` on any row.
    """
    graph = router_graph(
        fitted.estimator, fitted.calibration, fitted.p_value, _known_to_the_runtime(fitted, table),
        d_image=table.image.shape[1], d_question=table.question.shape[1],
    )  # fmt: skip
    file = folder / ROUTER_FILE
    file.write_bytes(graph.SerializeToString())
    files = [ROUTER_FILE, OUT_OF_FOLD]
    if isinstance(fitted.estimator, Reader):
        (folder / READER_FILE).write_bytes(picture_graph(fitted.estimator).SerializeToString())
        files.append(READER_FILE)
    difference = parity(file, fitted, table)
    if not difference <= PARITY:
        raise CheckFailed(f"router.onnx and the fitted estimator differ by {difference:.2g}, and {PARITY:g} is allowed")
    kept = folder / OUT_OF_FOLD
    probability = pa.FixedSizeListArray.from_arrays(fitted.out_of_fold.reshape(-1), len(table.scales))
    columns = {"id": table.ids.tolist(), "probability": probability, "out_of_distribution": fitted.strange}
    pq.write_table(pa.table(columns), kept)
    facts = describe(
        "router",
        **_what_was_fitted(fitted, table),
        labels_sha256=labels_sha256,
        parity_max_difference=difference,
        reader=READER_FILE if READER_FILE in files else None,
        files={name: sha256_file(folder / name) for name in files},
    )
    write_json(folder / "router.json", facts)
    judged = [
        {"name": c.name, "regret": float(c.regret.mean()), "log_loss": float(c.log_loss.mean())}
        for c in fitted.candidates
    ]
    report = {"candidates": judged, "chosen": fitted.name, "gain_over_hull_out_of_fold": asdict(fitted.gain)}
    write_json(folder / "report.json", report)
    return facts


def _known_to_the_runtime(fitted: Fitted, table: Table) -> dict[str, Any]:
    """What stands inside router.onnx for the runtime, beside the graph."""
    # A budget at the costs of the fit is priced by every row; where costs or scales are replaced, some rows must do.
    priced = fitted.spending.priced(fitted.policy, _PRICES)
    second = fitted.policy.rule
    some = np.linspace(0, len(table) - 1, min(len(table), _VALIDATION_ROWS)).astype(int)
    return {
        "scales": list(table.scales),
        "sizes": list(table.sizes),
        "least_p_value": fitted.least_p_value,
        "default_loss": fitted.risk_bounds[0].within if fitted.risk_bounds else DEFAULT_LOSS,
        "priced": [[float(f"{price:.6g}"), round(cost, 4)] for price, cost in priced],
        "validation": fitted.out_of_fold[some].round(4).tolist(),
        "validation_strange": np.flatnonzero(fitted.strange[some]).tolist(),
        "risk_bounds": [
            {"within": within, "price": min(p.price or 0.0 for p in fitted.risk_bounds if p.within == within)}
            for within in kept_losses(fitted.risk_bounds)
        ],
        "escalation": second,
        "validation_margin": table.margins[some].round(3).tolist() if second else None,
    }


def kept_losses(risk_bounds: list[RiskBound]) -> list[float]:
    """The losses that were bounded of all rows, and of every task where tasks were asked for."""
    asked = dict.fromkeys(p.within for p in risk_bounds)
    return [within for within in asked if all(p.price is not None for p in risk_bounds if p.within == within)]


def _what_was_fitted(fitted: Fitted, table: Table) -> dict[str, Any]:
    return {
        "scales": list(table.scales),
        "costs": table.cost.tolist(),
        "tile_tokens": table.facts.get("tile_tokens"),
        "cost_unit": table.facts["cost_unit"],
        "estimator": fitted.name,
        "seed": fitted.seed,
        "why": fitted.why,
        "constant": fitted.constant,
        "calibration": {"slope": fitted.calibration.slope_, "intercept": fitted.calibration.intercept_},
        "default_price": fitted.default_price,
        "price_unit": f"probability of a right answer for {table.cost.max():g} {table.facts['cost_unit']}",
        "default_price_rule": (
            "that of the first risk bound, or 0 where it could not be given"
            if fitted.risk_bounds
            else f"the largest that costs at most {DEFAULT_LOSS} of the finest scale's score out of fold"
        ),
        "target": table.target,
        "escalation": asdict(fitted.escalation) | {"on": fitted.escalation.pays} if fitted.escalation else None,
        "risk_bounds": [asdict(p) | {"words": p.words(table.facts["cost_unit"])} for p in fitted.risk_bounds],
        "least_p_value": fitted.least_p_value,
        "out_of_distribution": fitted.ood_rule.to_json(table.facts["cost_unit"]),
        "price_table": [asdict(point) for point in fitted.prices],
        "feature_version": table.facts["feature_version"],
        "feature_names": table.facts["feature_names"],
        "model_sha256": table.facts["model_sha256"],
        "labelled": {name: table.facts.get(name) for name in ("labels", "run", "rows", "metrics_said", "rescored")},
        "calibration_rows": int(fitted.apart.sum()),
        "fitted_on": {
            "rows": len(table),
            "groups": len(np.unique(table.groups)),
            "splits": sorted(set(table.splits.tolist())),
        },
    }


def parity(file: Path, fitted: Fitted, table: Table) -> float:
    """The largest difference in probability between router.onnx and the estimator, over every row."""
    graph, *_ = ask_graph(file, table, price=0.0)
    said = fitted.estimator.margins(seen_by(fitted.estimator, table))
    return float(np.abs(graph - fitted.calibration.probability(said)).max())
