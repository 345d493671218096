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
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from export.runtime.artefact import read_artefact, sha256_file
from export.runtime.errors import MvlmError
from export.runtime.features import FEATURE_VERSION

TEST = "test"
_FEWEST_GROUPS = 12
_NAMED = 8
_FILES = ("labels.parquet", "features.parquet")
_FACTS = ("scales", "cost", "cost_unit", "model_sha256", "feature_version", "feature_names", "files")

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


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
    require_facts(facts, _FACTS, folder / "labels.json")
    for name in _FILES:
        if not (folder / name).is_file() or sha256_file(folder / name) != facts["files"].get(name):
            raise MvlmError(f"{folder / name} is missing or was changed since it was written: label again")
    if facts["feature_version"] != FEATURE_VERSION:
        raise MvlmError(
            f"{folder} has features of version {facts['feature_version']}, and this mvlm makes version"
            f" {FEATURE_VERSION}: label again"
        )
    labels, features = (pq.read_table(folder / name) for name in _FILES)
    table, faults = _assemble(labels, features, facts)
    if table is not None:
        faults += _faults(table)
    if faults or table is None:
        raise MvlmError(f"{folder} has {len(faults)} faults; label again:\n" + "\n".join(f"  {f}" for f in faults))
    return table


def require_facts(facts: dict[str, Any], wanted: tuple[str, ...], file: Path) -> None:
    """Raise `MvlmError` unless the facts of an artefact hold everything that is read from them."""
    missing = [name for name in wanted if name not in facts]
    if missing:
        raise MvlmError(f"{file} says nothing of {', '.join(missing)}: make the folder again")


def _assemble(labels: pa.Table, features: pa.Table, facts: dict[str, Any]) -> tuple[Table | None, list[str]]:
    scales = tuple(int(scale) for scale in facts["scales"])
    ids = np.array(features["id"].to_pylist(), str)
    row_of = _places(labels["id"], features["id"].combine_chunks())  # (labels,)
    scale_of = _places(labels["num_visual_tokens"], pa.array(scales, labels["num_visual_tokens"].type))
    faults = _faults_of_cells(labels, row_of, scale_of, ids, scales)
    matrices = []
    for kind in ("image", "question"):
        length = len(facts["feature_names"][kind])
        matrix, wrong = _matrix(features[kind], length)
        matrices.append(matrix)
        if len(wrong):
            faults.append(f"{kind} features that are not {length} long: {_some(ids[wrong].tolist())}")
    if faults:
        return None, faults
    columns = {}
    for column in ("group", "task", "split", "answer"):
        values = labels[column].fill_null("").to_numpy()
        columns[column] = np.full(len(ids), "", object)
        columns[column][row_of] = values
        torn = columns[column][row_of] != values
        if torn.any():
            faults.append(
                f"rows whose {column} differs between their scales: {_some(np.unique(ids[row_of[torn]]).tolist())}"
            )
    scores = np.empty((len(ids), len(scales)), np.float32)
    predictions = np.empty((len(ids), len(scales)), object)
    scores[row_of, scale_of] = labels["score"].to_numpy()
    predictions[row_of, scale_of] = labels["prediction"].to_numpy()
    return Table(
        ids, columns["group"].astype(str), columns["task"].astype(str), columns["split"].astype(str),
        scores, matrices[0], matrices[1], predictions, columns["answer"],
        scales, np.asarray(facts["cost"], np.float64), facts,
    ), faults  # fmt: skip


def _faults_of_cells(
    labels: pa.Table, row_of: Ints, scale_of: Ints, ids: NDArray[np.str_], scales: tuple[int, ...]
) -> list[str]:
    """Labels that belong nowhere, cells (row, scale) that no label or several labels fill, and ids that come twice."""
    faults = []
    names, times = np.unique(ids, return_counts=True)
    if (times > 1).any():
        faults.append(f"features of one row twice: {_some(names[times > 1].tolist())}")
    known = (row_of >= 0) & (scale_of >= 0)
    if not known.all():
        strangers = np.unique(labels["id"].to_numpy()[~known].astype(str)).tolist()
        faults.append(f"labels of rows without features, or at other scales than labels.json says: {_some(strangers)}")
    cells = row_of[known] * len(scales) + scale_of[known]
    filled = np.bincount(cells, minlength=len(ids) * len(scales)).reshape(len(ids), len(scales))
    for what, wrong in (("no label", filled == 0), ("several labels", filled > 1)):
        if wrong.any():
            named = [f"{ids[row]} at {scales[k]}" for row, k in np.argwhere(wrong)]
            faults.append(f"{what} for {len(named)} of (row, scale): {_some(named)}")
    return faults


def _places(column: pa.ChunkedArray, values: pa.Array) -> Ints:
    """Where each entry stands among `values`, -1 for one that does not: (entries,)."""
    return pc.index_in(column, value_set=values).fill_null(-1).to_numpy().astype(np.int64)


def _matrix(column: pa.ChunkedArray, length: int) -> tuple[Floats, Ints]:
    """A column of lists as (n, length), and the rows whose list has another length; with such rows it is empty."""
    lists = column.combine_chunks()
    wrong = np.flatnonzero(pc.list_value_length(lists).fill_null(-1).to_numpy() != length)
    if len(wrong):
        return np.empty((0, length), np.float32), wrong
    return lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, length), wrong


def _faults(table: Table) -> list[str]:
    faults = []
    bad = ~((table.scores >= 0) & (table.scores <= 1)).all(axis=1)
    if bad.any():
        faults.append(f"scores outside 0 to 1: {_some(table.ids[bad].tolist())}")
    for kind in ("image", "question"):
        bad = ~np.isfinite(getattr(table, kind)).all(axis=1)
        if bad.any():
            faults.append(f"{kind} features that are no numbers: {_some(table.ids[bad].tolist())}")
    for name, nowhere in (("group", table.groups == ""), ("split", table.splits == "")):
        if nowhere.any():
            faults.append(f"rows without a {name}: {_some(table.ids[nowhere].tolist())}")
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
