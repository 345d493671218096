"""Reads and checks labels/: what was right at every scale, and what a router may see of each row.

Scores are taken as they are: graded ones stay graded, rows that nothing answers stay, and so do rows where more tokens
hurt. Where a row was answered several times (a column `sample`), its score is the mean, and each is kept beside it.

Letters: n rows, R samples of an answer, K scales.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from export.runtime.artefact import read_artefact, require_facts, sha256_file
from export.runtime.errors import MvlmError
from export.runtime.features import FEATURE_VERSION
from export.runtime.label_columns import ALWAYS, FEATURES
from export.runtime.views.scale import Scale, ScaleWord

from .alike import told_apart
from .measures import RIGHT_OR_WRONG
from .reading import read_reading
from .table import TEST, Floats, Table

_FEWEST_GROUPS = 12
_NAMED = 8
# Names of today, and those of labels that an earlier version wrote.
OOD_PROBES, _FORMER_OOD_PROBES = "ood_probes.parquet", "strangers.parquet"
_FORMER_SAMPLE = "run"
_FILES = ("labels.parquet", "features.parquet")
_FACTS = ("scales", "cost", "cost_unit", "model_sha256", "feature_version", "feature_names", "files")

Ints = NDArray[np.int64]
# The labels of a folder with other scores, and what labels.json would say of them.
Rescored = Callable[[Path], tuple[pa.Table, dict[str, Any]]]


def read_table(folder: Path, target: str = "score", rescored: Rescored | None = None) -> Table:
    """Read a labels folder. Raises `MvlmError` that names every fault: holes, bad scores, features, splits.

    With the target `agreement` scores need not be there: an answer counts when it is that of the finest scale. With
    `likelihood` a score is the probability of a token of the reference answer, the geometric mean over them.
    `rescored` scores the labels by other metrics than they were labelled by.
    """
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
    if rescored:
        labels, told = rescored(folder)
        facts |= told
    faults, table = _missing_columns(labels, features, target, tiled=facts.get("tile_tokens") is not None), None
    if not faults:
        table, faults = _assemble(labels, features, facts, target)
    if table is not None:
        table = told_apart(table)
        faults += _faults(table)
    if faults or table is None:
        raise MvlmError(f"{folder} has {len(faults)} faults; label again:\n" + "\n".join(f"  {f}" for f in faults))
    return replace(table, ood_probes=_ood_probes(folder, facts), reading=read_reading(folder, facts, table.ids))


def _missing_columns(labels: pa.Table, features: pa.Table, target: str, *, tiled: bool) -> list[str]:
    wanted = [name for name in ALWAYS if name != "score" or target == "score"]
    wanted += ["num_visual_tokens", "tiles"] if tiled else []
    wanted += ["loss"] if target == "likelihood" else []
    if "num_visual_tokens" not in labels.column_names:  # which stood for the scale in labels of before
        wanted.append("scale")
    return [
        f"{file} has no column {name}"
        for file, table, names in zip(_FILES, (labels, features), (wanted, FEATURES), strict=True)
        for name in names
        if name not in table.column_names
    ]


def _ood_probes(folder: Path, facts: dict[str, Any]) -> dict[str, tuple[Floats, Floats]]:
    """Features (n, d_image) and (n, d_question) of pictures of other kinds, by kind, where the labels hold any."""
    name = next((name for name in (OOD_PROBES, _FORMER_OOD_PROBES) if name in facts["files"]), None)
    if name is None:
        return {}
    file = folder / name
    if not file.is_file() or sha256_file(file) != facts["files"][name]:
        raise MvlmError(f"{file} is missing or was changed since it was written: label again")
    table = pq.read_table(file)
    kinds = np.array(table["kind"].to_pylist(), str)
    image, question = (_matrix(table[kind], len(facts["feature_names"][kind]))[0] for kind in ("image", "question"))
    return {str(kind): (image[kinds == kind], question[kinds == kind]) for kind in np.unique(kinds)}


def _assemble(
    labels: pa.Table, features: pa.Table, facts: dict[str, Any], target: str
) -> tuple[Table | None, list[str]]:
    scales, cost = _by_cost(facts)
    ids = np.array(features["id"].to_pylist(), str)
    row_of = _places(labels["id"], features["id"].combine_chunks())  # (labels,)
    # A picture may take more tokens than its scale says, where marks stand around it; labels of before held no scale.
    words = labels["scale" if "scale" in labels.column_names else "num_visual_tokens"].cast(pa.string())
    scale_of = _places(words, pa.array([str(scale) for scale in scales]))
    sample_of = _samples(labels)
    faults = _faults_of_cells(labels, row_of, sample_of, scale_of, ids, scales)
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
    shape = len(ids), int(sample_of.max()) + 1, len(scales)
    samples, predictions = np.empty(shape, np.float32), np.empty(shape, object)
    predictions[row_of, sample_of, scale_of] = labels["prediction"].to_numpy()
    if target == "agreement":
        # A missing answer agrees with a missing answer.
        told = np.char.lower(np.char.strip(predictions.astype(str)))
        samples[:] = told == told[:, :, -1:]
    elif target == "likelihood":
        samples[row_of, sample_of, scale_of] = np.exp(-labels["loss"].fill_null(np.nan).to_numpy())
        samples[:] = samples[:, :1]  # that of the first sample: references are read once
    else:
        samples[row_of, sample_of, scale_of] = labels["score"].to_numpy()
    margins = np.full(shape, np.nan, np.float32)
    if "margin" in labels.column_names:
        margins[row_of, sample_of, scale_of] = labels["margin"].fill_null(np.nan).to_numpy()
    return Table(
        ids, columns["group"].astype(str), columns["task"].astype(str), columns["split"].astype(str),
        samples, matrices[0], matrices[1], margins[:, 0], predictions[:, 0], columns["answer"],
        scales, cost, facts, target,
        probability=_told(labels, row_of, sample_of, scale_of, shape) if target == "score" else None,
        row_cost=_row_cost(labels, facts, row_of, scale_of, shape),
    ), faults  # fmt: skip


def _by_cost(facts: dict[str, Any]) -> tuple[tuple[ScaleWord, ...], NDArray[np.float64]]:
    """Scales and their costs; with tiles a scale may cost less than one that stands before it, and goes there."""
    scales, cost = [Scale.parse(scale).word for scale in facts["scales"]], np.asarray(facts["cost"], np.float64)
    if all(isinstance(scale, int) for scale in scales) or len(cost) != len(scales):
        return tuple(scales), cost
    order = np.argsort(cost, kind="stable")
    return tuple(scales[k] for k in order), cost[order]


def _metrics(labels: pa.Table) -> set[str]:
    """The metrics that rows were scored by; labels of before were scored by one."""
    if "metric" not in labels.column_names:
        return set()
    return set(pc.unique(labels["metric"].drop_null()).to_pylist())


def _told(
    labels: pa.Table, row_of: Ints, sample_of: Ints, scale_of: Ints, shape: tuple[int, int, int]
) -> Floats | None:
    """P(right) (n, K) of the greedy sample, or None unless it is there for every row and scale."""
    if "probability" not in labels.column_names or not RIGHT_OR_WRONG.issuperset(_metrics(labels)):
        return None
    told = np.full(shape, np.nan, np.float32)
    told[row_of, sample_of, scale_of] = labels["probability"].fill_null(np.nan).to_numpy()
    first = told[:, 0]
    return first if np.isfinite(first).all() else None


def _row_cost(
    labels: pa.Table, facts: dict[str, Any], row_of: Ints, scale_of: Ints, shape: tuple[int, int, int]
) -> NDArray[np.float64] | None:
    """What each row pays at each scale (n, K), where labels say it: tokens, and what encoding its tiles is worth."""
    if facts.get("tile_tokens") is None:
        return None
    tokens, tiles = (
        labels[name].cast(pa.float64()).fill_null(np.nan).to_numpy() for name in ("num_visual_tokens", "tiles")
    )
    cost = np.empty((shape[0], shape[2]))
    cost[row_of, scale_of] = tokens + tiles * float(facts["tile_tokens"])
    return cost


def _samples(labels: pa.Table) -> Ints:
    """Which sample each label is of, counted from 0 whatever they are called; without the column there is one."""
    column = next((name for name in ("sample", _FORMER_SAMPLE) if name in labels.column_names), None)
    if column is None:
        return np.zeros(len(labels), np.int64)
    return np.unique(labels[column].fill_null(0).to_numpy(), return_inverse=True)[1].astype(np.int64)


def _faults_of_cells(
    labels: pa.Table,
    row_of: Ints,
    sample_of: Ints,
    scale_of: Ints,
    ids: NDArray[np.str_],
    scales: tuple[ScaleWord, ...],
) -> list[str]:
    """Labels that belong nowhere, cells (row, run, scale) that no label or several fill, and ids that come twice."""
    faults = []
    names, times = np.unique(ids, return_counts=True)
    if (times > 1).any():
        faults.append(f"features of one row twice: {_some(names[times > 1].tolist())}")
    known = (row_of >= 0) & (scale_of >= 0)
    if not known.all():
        unknown = np.unique(labels["id"].to_numpy()[~known].astype(str)).tolist()
        faults.append(f"labels of rows without features, or at other scales than labels.json says: {_some(unknown)}")
    shape = len(ids), int(sample_of.max(initial=0)) + 1, len(scales)
    cells = np.ravel_multi_index((row_of[known], sample_of[known], scale_of[known]), shape)
    filled = np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape)
    for what, wrong in (("no label", filled == 0), ("several labels", filled > 1)):
        if wrong.any():
            named = [
                f"{ids[row]} at {scales[k]}" + (f" in sample {sample + 1}" if shape[1] > 1 else "")
                for row, sample, k in np.argwhere(wrong)
            ]
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
    missing = np.isnan(table.samples).all()
    bad = ~((table.samples >= 0) & (table.samples <= 1)).all(axis=(1, 2))
    if table.probability is not None:
        wrong = ~((table.probability >= 0) & (table.probability <= 1)).all(axis=1)
        if wrong.any():
            faults.append(f"probabilities outside 0 to 1: {_some(table.ids[wrong].tolist())}")
    if missing and table.target == "likelihood":
        faults.append("no losses at all: they were labelled before losses were kept")
    elif missing:
        faults.append("no scores at all: agreement with the finest scale can stand for them, with --target agreement")
    elif bad.any():
        faults.append(f"scores outside 0 to 1: {_some(table.ids[bad].tolist())}")
    for kind in ("image", "question"):
        bad = ~np.isfinite(getattr(table, kind)).all(axis=1)
        if bad.any():
            faults.append(f"{kind} features that are no numbers: {_some(table.ids[bad].tolist())}")
    if (np.ptp(table.image, axis=0) == 0).all() and (np.ptp(table.question, axis=0) == 0).all():
        faults.append("every feature is the same in all rows: there is nothing to choose by")
    only_test = set(table.tasks[table.splits == TEST].tolist()) - set(table.tasks[table.splits != TEST].tolist())
    only_test -= {""}  # no kind is named
    if only_test:
        faults.append(f"tasks that only the test split has, and no router can learn: {_some(sorted(only_test))}")
    for name, nowhere in (("group", table.groups == ""), ("split", table.splits == "")):
        if nowhere.any():
            faults.append(f"rows without a {name}: {_some(table.ids[nowhere].tolist())}")
    splits_of: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(table.groups.tolist(), table.splits.tolist(), strict=True):
        splits_of[group].add(split)
    shared = sorted(group for group, splits in splits_of.items() if len(splits) > 1)
    if shared:
        faults.append(f"groups in several splits: {_some(shared)}")
    if len(table.cost) != len(table.scales) or (np.diff(table.cost) <= 0).any() or (np.diff(table.sizes) <= 0).any():
        faults.append(f"scales {table.scales} and their costs {table.cost.tolist()} must both increase")
    if table.row_cost is not None and not (table.row_cost > 0).all():
        faults.append(f"costs that are not above 0: {_some(table.ids[~(table.row_cost > 0).all(axis=1)].tolist())}")
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
