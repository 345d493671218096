"""Reads and checks labels/: what was right at every scale, and what a router may see of each row.

Letters: n rows, K scales.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from export.runtime.artefact import read_artefact, sha256_file
from export.runtime.errors import MvlmError
from export.runtime.features import FEATURE_VERSION

TEST = "test"
_FEWEST_GROUPS = 12
_NAMED = 8

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Table:
    """Rows with their scores (n, K), features (n, d_image) and (n, d_question), and where they come from."""

    ids: NDArray[np.str_]
    groups: NDArray[np.str_]
    tasks: NDArray[np.str_]
    splits: NDArray[np.str_]
    scores: Floats
    image: Floats
    question: Floats
    predictions: NDArray[np.object_]
    answers: NDArray[np.object_]
    scales: tuple[int, ...]
    cost: NDArray[np.float64]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[Any]) -> Table:
        """Some of the rows: a mask or indices over n."""
        names = ("ids", "groups", "tasks", "splits", "scores", "image", "question", "predictions", "answers")
        return Table(
            **{name: getattr(self, name)[rows] for name in names}, scales=self.scales, cost=self.cost, facts=self.facts
        )

    @property
    def fit_rows(self) -> Table:
        """What a router is fitted on: every labelled row outside the test split."""
        return self.take(self.splits != TEST)

    @property
    def test_rows(self) -> Table:
        """What is touched once, by the report."""
        return self.take(self.splits == TEST)


def read_table(folder: Path) -> Table:
    """Read a labels folder. Raises `MvlmError` that names every fault: holes, bad scores, features, splits."""
    facts = read_artefact(folder, "labels")
    for name, wanted in facts["files"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != wanted:
            raise MvlmError(f"{folder / name} is missing or was changed since it was written: label again")
    if facts["feature_version"] != FEATURE_VERSION:
        raise MvlmError(
            f"{folder} has features of version {facts['feature_version']}, and this mvlm makes version"
            f" {FEATURE_VERSION}: label again"
        )
    labels = pq.read_table(folder / "labels.parquet")
    features = pq.read_table(folder / "features.parquet")
    table, faults = _assemble(labels, features, facts)
    if table is not None:
        faults += _faults(table)
    if faults or table is None:
        raise MvlmError(f"{folder} has {len(faults)} faults; label again:\n" + "\n".join(f"  {f}" for f in faults))
    return table


def _assemble(labels: pa.Table, features: pa.Table, facts: dict[str, Any]) -> tuple[Table | None, list[str]]:
    scales = tuple(int(scale) for scale in facts["scales"])
    ids = features["id"].to_pylist()
    place = {name: row for row, name in enumerate(ids)}
    row_of = np.array([place.get(name, -1) for name in labels["id"].to_pylist()])
    scale_of = np.array([scales.index(m) if m in scales else -1 for m in labels["num_visual_tokens"].to_pylist()])
    known = (row_of >= 0) & (scale_of >= 0)
    faults = []
    if not known.all():
        strangers = sorted({str(labels["id"][int(i)]) for i in np.flatnonzero(~known)})
        faults.append(f"labels of rows without features, or at other scales than labels.json says: {_some(strangers)}")
    scores = np.full((len(ids), len(scales)), np.nan, np.float32)
    seen = np.zeros((len(ids), len(scales)), bool)
    predictions = np.full((len(ids), len(scales)), None, object)
    at = row_of[known], scale_of[known]
    scores[at] = labels["score"].to_numpy()[known]
    predictions[at] = np.array(labels["prediction"].to_pylist(), object)[known]
    seen[at] = True
    if not seen.all():
        holes = [f"{ids[row]} at {scales[k]}" for row, k in np.argwhere(~seen)]
        faults.append(f"no label for {len(holes)} of (row, scale): {_some(holes)}")
    arrays = {}
    for kind in ("image", "question"):
        values, length = features[kind].to_pylist(), len(facts["feature_names"][kind])
        wrong = [name for name, row in zip(ids, values, strict=True) if len(row) != length]
        if wrong:
            faults.append(f"{kind} features that are not {length} long: {_some(wrong)}")
        else:
            arrays[kind] = np.asarray(values, np.float32).reshape(len(ids), length)
    if faults:
        return None, faults
    columns = {}
    for column in ("group", "task", "split", "answer"):
        filled = np.full(len(ids), "", object)
        filled[row_of] = [value or "" for value in labels[column].to_pylist()]
        columns[column] = filled
    return Table(
        np.array(ids), columns["group"].astype(str), columns["task"].astype(str), columns["split"].astype(str),
        scores, arrays["image"], arrays["question"], predictions, columns["answer"],
        scales, np.asarray(facts["cost"], np.float64), facts,
    ), []  # fmt: skip


def _faults(table: Table) -> list[str]:
    faults = []
    bad = ~((table.scores >= 0) & (table.scores <= 1)).all(axis=1)
    if bad.any():
        faults.append(f"scores outside 0 to 1: {_some(table.ids[bad].tolist())}")
    for kind in ("image", "question"):
        bad = ~np.isfinite(getattr(table, kind)).all(axis=1)
        if bad.any():
            faults.append(f"{kind} features that are no numbers: {_some(table.ids[bad].tolist())}")
    splits_of: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(table.groups.tolist(), table.splits.tolist(), strict=True):
        splits_of[group].add(split)
    shared = sorted(group for group, splits in splits_of.items() if len(splits) > 1)
    if shared:
        faults.append(f"groups in several splits: {_some(shared)}")
    if len(table.cost) != len(table.scales) or (np.diff(table.cost) <= 0).any() or (np.diff(table.scales) <= 0).any():
        faults.append(f"scales {table.scales} and their costs {table.cost.tolist()} must both increase")
    for name, rows in (
        ("rows outside the test split", table.splits != TEST),
        ("rows of the test split", table.splits == TEST),
    ):
        groups = len(set(table.groups[rows].tolist()))
        if groups < _FEWEST_GROUPS:
            faults.append(f"{name}: {groups} groups (pictures), and at least {_FEWEST_GROUPS} are needed")
    return faults


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
