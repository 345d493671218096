"""Splits that are said beside a data set, for formats whose rows say none: which rows are for what. No torch."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from export.runtime.artefact import describe, read_artefact, write_json
from export.runtime.errors import MvlmError

from .row import SPLITS, Row

SPLITS_FILE = "splits.json"
# Of fewer pictures a router cannot be fitted, nor a report made.
FEWEST_PICTURES = 12
# What may be spared for each of val and test, in hundredths.
_SHARES = (10, 15, 20, 25, 30)


def splits_file(path: Path) -> Path:
    """Where the splits of a data file or folder are said: beside the file, in the folder."""
    return path / SPLITS_FILE if path.is_dir() else path.with_suffix(f".{SPLITS_FILE}")


def read_splits(path: Path, sha256: str) -> dict[str, str]:
    """The split of each row by its id, as said beside the data set; empty where nothing is.

    `sha256` is that of the data's files. Raises `MvlmError` for splits of other contents.
    """
    file = splits_file(path)
    if not file.is_file():
        return {}
    facts = read_artefact(file.parent, file.stem)
    if facts.get("rows_sha256") != sha256:
        raise MvlmError(f"{file} is about other contents of {path}: `mvlm data split {path} --overwrite` makes it anew")
    return {name: split for split, names in facts["splits"].items() for name in names}


def write_splits(path: Path, sha256: str, rows: Sequence[Row], splits: Mapping[str, str]) -> Path:
    """Say the splits of rows beside their data set, and return the file."""
    file = splits_file(path)
    named = {split: [row.id for row in rows if splits[row.id] == split] for split in SPLITS}
    write_json(file, describe(file.stem, rows_sha256=sha256, splits=named))
    return file


def split_rows(rows: Sequence[Row], val: float, test: float, seed: int) -> dict[str, str]:
    """A split for each row's id: rows that share a picture or a group share it, and tasks are spread evenly.

    `val` and `test` are shares of the pictures. Raises `MvlmError` when too few pictures are there for one of them.
    """
    clusters = _clusters(rows)
    ordered = _by_task(clusters, random.Random(seed))
    of_test = _every(len(ordered), test)
    rest = [n for n in range(len(ordered)) if n not in of_test]
    of_val = {rest[i] for i in _every(len(rest), val / (1 - test))}
    for name, found in (("val", of_val), ("test", of_test)):
        if len(found) < FEWEST_PICTURES:
            raise MvlmError(
                f"{len(found)} pictures would be of the split {name}, and a router needs {FEWEST_PICTURES}:"
                f" raise --{name}, or add pictures (there are {len(clusters)})"
            )
    of = {n: "test" if n in of_test else "val" if n in of_val else "train" for n in range(len(ordered))}
    return {row.id: of[n] for n, cluster in enumerate(ordered) for row in cluster}


def splitting(rows: str, pictures: int) -> list[str] | None:
    """The command that splits rows about so many pictures, with larger shares where there are few; None where they are
    too few for any."""
    share = next((share for share in _SHARES if pictures * share // 100 >= FEWEST_PICTURES), None)
    if share is None:
        return None
    told = [] if share == _SHARES[0] else ["--val", f"{share}%", "--test", f"{share}%"]
    return ["mvlm", "data", "split", rows, *told]


def _clusters(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that share a picture or a group, directly or through others."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            name = root[name]
        return name

    for row in rows:
        shared = [f"group {row.group}", *(f"picture {picture.key}" for picture in row.pictures)]
        for name in shared[1:]:
            root[find(name)] = find(shared[0])
    clusters: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        clusters[find(f"group {row.group}")].append(row)
    return list(clusters.values())


def _by_task(clusters: Sequence[list[Row]], order: random.Random) -> list[list[Row]]:
    """One task after another, by the commonest task of each cluster, in an order that is drawn within it."""
    strata: dict[str, list[list[Row]]] = defaultdict(list)
    for cluster in clusters:
        strata[Counter(row.task or "" for row in cluster).most_common(1)[0][0]].append(cluster)
    return [cluster for task in sorted(strata) for cluster in order.sample(strata[task], len(strata[task]))]


def _every(count: int, share: float) -> set[int]:
    """Places spread evenly over `count`, a share of them."""
    return {n for n in range(count) if int((n + 1) * share + 1e-9) > int(n * share + 1e-9)}
