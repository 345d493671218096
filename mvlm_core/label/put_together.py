"""The parts of a sweep as files, and all of them put together to labels/."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from export.runtime.artefact import (
    describe,
    place_beside,
    put_in_place,
    read_artefact,
    sha256_file,
    sha256_json,
    write_json,
)
from export.runtime.features import FEATURE_VERSION, question_feature_names
from export.runtime.label_columns import FLOATS, READING, TEXTS
from export.runtime.views.scale import Scale, ScaleWord, coarse_to_fine
from mvlm_core.scoring.of_rows import RowMetrics

from .patches import PatchFiles
from .rescored import REFERENCES_FILE
from .swept import Sweep

FILES = ("labels.parquet", "features.parquet", "ood_probes.parquet", "asked.parquet", REFERENCES_FILE)


def part_file(folder: Path, table: str, start: int) -> Path:
    return folder / f"{table}-{start:08d}.parquet"


def write_part(file: Path, lines: list[dict[str, Any]], columns: Mapping[str, str]) -> None:
    beside = file.with_suffix(f".{socket.gethostname()}-{os.getpid()}.partial")
    lists = {FLOATS: pa.list_(pa.float32()), TEXTS: pa.list_(pa.string())}
    types = [(name, lists.get(kind) or pa.type_for_alias(kind)) for name, kind in columns.items()]
    pq.write_table(pa.Table.from_pylist(lines, pa.schema(types)), beside)
    beside.replace(file)


def put_together(
    folder: Path,
    out: Path,
    sweep: Sweep,
    starts: Sequence[int],
    counts: Mapping[str, Any],
    metrics: RowMetrics,
    patches: PatchFiles | None,
    views: dict[str, Any],
) -> dict[str, Any]:
    whole = folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    for table in ("labels", "features"):
        parts = [pq.read_table(part_file(folder, table, start)) for start in starts]
        pq.write_table(pa.concat_tables(parts), whole / f"{table}.parquet")
    for name in FILES[2:]:
        shutil.copyfile(folder / name, whole / name)
    reading = patches.assemble(whole, starts) if patches else None
    known = read_artefact(sweep.rows, "rows") if (sweep.rows / "rows.json").is_file() else {}
    key = sweep.key()
    facts = describe(
        "labels",
        scales=list(sweep.scales),
        cost=_mean_costs(whole / "labels.parquet", sweep.scales, views["tile_tokens"]),
        tile_tokens=views["tile_tokens"],
        cost_unit="tokens",
        model_sha256=key["model_sha256"],
        rows_sha256=key["rows_sha256"],
        pictures_sha256=key["pictures_sha256"],
        rows=place_beside(sweep.rows, out),
        run=place_beside(sweep.run, out),
        metrics_said=list(sweep.metrics),
        precision=sweep.precision,
        feature_version=FEATURE_VERSION,
        reading=reading,
        feature_names={"image": views["picture_features"], "question": question_feature_names()},
        samples=sweep.samples,
        max_rows=sweep.max_rows,
        **metrics.facts(),
        max_new_tokens=sweep.max_new_tokens,
        beside=sweep.beside,
        counts=dict(counts),
        tasks=known.get("tasks", {}),
        key_sha256=sha256_json(key),
        files={name: sha256_file(whole / name) for name in (*FILES, *(READING if reading else ()))},
    )
    write_json(whole / "labels.json", facts)
    put_in_place(whole, out.absolute())
    shutil.rmtree(folder)
    return facts


def _mean_costs(labels: Path, scales: Sequence[ScaleWord], of_tile: float | None) -> list[float]:
    """What a row costs on average at each scale: its tokens, and the encoding of its tiles. What a small picture does
    not have, it does not cost; the overview is encoded in any case."""
    columns = ["scale", "num_visual_tokens", "tiles"]
    words, tokens, tiles = (np.asarray(column) for column in pq.read_table(labels, columns=columns).columns)
    cost = tokens + tiles * (of_tile or 0.0)
    return [float(cost[words == str(scale)].mean()) for scale in scales]


def ladder(labels: Path) -> dict[ScaleWord, float]:
    """Mean score at each scale of a labels folder."""
    scales, scores = (
        np.asarray(column) for column in pq.read_table(labels / "labels.parquet", columns=["scale", "score"]).columns
    )
    found = coarse_to_fine(Scale.parse(word).word for word in np.unique(scales).tolist())
    return {scale: float(scores[scales == str(scale)].mean()) for scale in found}
