"""The files of a data set: which they are, what split their names say, and the rows that stand in them. No torch."""

from __future__ import annotations

import json
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.runtime.artefact import sha256_file, sha256_json
from export.runtime.errors import MvlmError

from .formats import Origin
from .row import SPLITS
from .splits import SPLITS_FILE, read_splits, splits_file
from .values import read_json, require_whole

ROWS_FILE = "rows.jsonl"
_LINES, _LIST, _TABLE, _TAR = ".jsonl", ".json", ".parquet", ".tar"
_SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_MOST_MEMBER_BYTES = 2**30
_SAMPLE = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)")  # what WebDataset takes for the key and the field of a member


@dataclass(frozen=True)
class DataFiles:
    """Files of one kind, by the split that their names say; those that say none are for training."""

    base: Path
    suffix: str
    of_split: dict[str, list[Path]]

    def each(self) -> list[tuple[str, Path]]:
        return [(split, file) for split, files in self.of_split.items() for file in files]


def data_files(path: Path) -> DataFiles:
    """A data file, or those of a folder: `rows.jsonl`, or else all of one kind, in folders below too.

    Raises `MvlmError` when there are none, or files of several kinds.
    """
    if os.path.isfile(path):
        if path.suffix not in kinds_of_files():
            raise MvlmError(f"{path} is no data file: .jsonl, .json, .parquet and .tar are read")
        return DataFiles(path.parent, path.suffix, {_split_of(Path(path.name)): [path]})
    if os.path.isfile(path / ROWS_FILE):
        return DataFiles(path, _LINES, {SPLITS[0]: [path / ROWS_FILE]})
    files = sorted(file for file in path.rglob("*") if file.suffix in (_LINES, _TABLE, _TAR) and file.is_file())
    files = files or sorted(file for file in path.glob(f"*{_LIST}") if not file.name.endswith(SPLITS_FILE))
    kinds = sorted({file.suffix for file in files})
    if not kinds:
        raise MvlmError(f"there are no rows at {path}: name a data file or folder, or draw one with `mvlm data scenes`")
    if len(kinds) > 1:
        raise MvlmError(f"{path} holds {' and '.join(kinds)} files: name the one, or a folder of one kind")
    of_split: dict[str, list[Path]] = {}
    for file in files:
        of_split.setdefault(_split_of(file.relative_to(path)), []).append(file)
    return DataFiles(path, kinds[0], of_split)


def _split_of(file: Path) -> str:
    """The split that a file's name says, or failing that a folder's, the nearest first."""
    for part in (file.stem, *reversed(file.parent.parts)):
        named = {_SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", part.lower()) if word in _SPLIT_WORDS}
        if len(named) == 1:
            return named.pop()
    return SPLITS[0]


def rows_sha256(path: Path) -> str:
    """The hash of a data set: of its files, and of the splits said beside them."""
    beside = splits_file(path)
    data = data_sha256(path)
    return sha256_json([data, sha256_file(beside)]) if beside.is_file() else data


def splits_beside(path: Path) -> dict[str, str]:
    """The split of each row that is said beside a data set, by its id; empty where nothing is said."""
    return read_splits(path, data_sha256(path)) if splits_file(path).is_file() else {}


def data_sha256(path: Path) -> str:
    """The hash of a data set's files: of one, its own."""
    files = data_files(path)
    hashes = {file.relative_to(files.base).as_posix(): sha256_file(file) for _, file in files.each()}
    return next(iter(hashes.values())) if len(hashes) == 1 else sha256_json(hashes)


def values(files: DataFiles, faults: list[str], *, streaming: bool) -> Iterator[tuple[Any, Origin]]:
    """What stands in the files, row by row, and where; lines that cannot be read go to `faults`.

    With `streaming` a table or a tar is read as it goes, and what a row holds is kept with it; without, it is put where
    any row can be read again.
    """
    if files.suffix in (_TABLE, _TAR):
        yield from _tables(files, faults, streaming=streaming)
        return
    read = _list if files.suffix == _LIST else _lines
    several = len(files.each()) > 1
    for split, file in files.each():
        name = f"{file.relative_to(files.base)}, " if several else ""
        yield from read(file, split, name, faults)


def _list(file: Path, split: str, name: str, faults: list[str]) -> Iterator[tuple[Any, Origin]]:
    try:
        found = read_json(file.read_bytes())
    except MvlmError as error:
        faults.append(f"{name}{error}")
        return
    if not isinstance(found, list):
        faults.append(f"{name}not a JSON list of rows, as LLaVA's data files are")
        return
    for number, value in enumerate(found):
        yield value, Origin(f"{name}row {number}", file.parent, split)


@dataclass(frozen=True)
class _Line:
    file: Path
    offset: int

    def __call__(self) -> Any:
        with self.file.open("rb") as lines:
            lines.seek(self.offset)
            return read_json(lines.readline())


def _lines(file: Path, split: str, name: str, faults: list[str]) -> Iterator[tuple[Any, Origin]]:
    with file.open("rb") as lines:
        offset = 0
        for number, line in enumerate(lines, 1):
            if line.strip():
                origin = Origin(f"{name}line {number}", file.parent, split, _Line(file, offset))
                try:
                    found = read_json(line)
                except MvlmError as error:
                    faults.append(f"{origin.where}: {error}")
                else:
                    yield found, origin
            offset += len(line)


@dataclass(frozen=True)
class _Entry:
    table: Any
    index: int
    shape: Callable[[dict[str, Any]], Any]

    def __call__(self) -> Any:
        return self.shape(self.table[self.index])


def _tables(files: DataFiles, faults: list[str], *, streaming: bool) -> Iterator[tuple[Any, Origin]]:
    shape = _of_sample if files.suffix == _TAR else dict
    for split, paths in files.of_split.items():
        with _faults_of(files, paths):
            table = _open(files.suffix, paths, streaming=streaming)
            for index, entry in enumerate(_one_by_one(table) if streaming else table):
                again = None if streaming else _Entry(table, index, shape)
                origin = Origin(f"row {index} of {split}", files.base, split, again, f"{split}-{index}")
                try:
                    value = shape(entry)
                except MvlmError as error:
                    faults.append(f"{origin.where}, {error}")
                else:
                    yield value, origin


def _one_by_one(stream: Any) -> Iterator[dict[str, Any]]:
    """The rows of a stream, all of them: iterated over itself, it shows each worker of a loader other files."""
    for batch in stream.iter(batch_size=1):
        yield {name: held[0] for name, held in batch.items()}


def _open(suffix: str, paths: Sequence[Path], *, streaming: bool) -> Any:
    """The rows of parquet files or tars, their pictures left as bytes.

    `datasets` knows a file by its path and the time of its change, and a copy of another file that had both would be
    read: so its copies are named by what the files hold.
    """
    import datasets

    kind = {_TABLE: "parquet", _TAR: "webdataset"}[suffix]
    named: dict[str, Any] = {"data_files": {"train": [str(path) for path in paths]}, "split": "train"}
    if not streaming:
        named["name"] = sha256_json([sha256_file(path) for path in paths])
    if suffix == _TAR:
        features = _features_of_tars(paths)
    else:
        features = _undecoded(datasets.load_dataset(kind, **named, streaming=True).features)
    return datasets.load_dataset(kind, **named, features=features, streaming=streaming)


def _undecoded(features: Any) -> Any:
    """The features of a table with every picture left as it is stored."""
    import datasets

    if isinstance(features, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(features, datasets.List | datasets.LargeList):
        return type(features)(_undecoded(features.feature))
    if isinstance(features, dict):
        return type(features)({name: _undecoded(feature) for name, feature in features.items()})
    return features


def _features_of_tars(paths: Sequence[Path]) -> Any:
    """What stands in the tars, told by the names of all members: samples need not be alike."""
    import datasets

    fields = {found[2] for path in paths for name in _members(path) if (found := _SAMPLE.fullmatch(name))}
    pictures = {field: datasets.Image(decode=False) for field in fields if _is_picture(field)}
    words = {name: datasets.Value("string") for name in ("__key__", "__url__")}
    return datasets.Features({**words, "json": datasets.Json(), **pictures})


def _members(path: Path) -> list[str]:
    """The names in a tar. Raises `MvlmError` for a member that no row's picture or JSON is as large as: it would be
    read whole. Compressed tars are none here, whatever they would grow to."""
    with tarfile.open(path, "r:") as tar:
        names = []
        for member in tar:
            if member.size > _MOST_MEMBER_BYTES:
                raise MvlmError(f"{path} holds {member.name!r:.80} of {member.size} bytes: split it, or take it out")
            names.append(member.name)
        return names


def _is_picture(field: str) -> bool:
    return is_picture_file(f".{field}")


def is_picture_file(name: str) -> bool:
    """Whether a file is a picture, by how its name ends."""
    return name.lower().endswith(_PICTURES)


def kinds_of_files() -> tuple[str, ...]:
    """How the names of data files end."""
    return _LINES, _LIST, _TABLE, _TAR


def _of_sample(sample: dict[str, Any]) -> Any:
    """A sample of a tar as a row: its pictures, in the order of their names, stand for those that its JSON names."""
    value = sample["json"]
    if value is None:
        name = sample["__key__"]
        raise MvlmError(f"sample {name}: no {name}.json beside its pictures, so nothing is said of them")
    fields = sorted((f for f in sample if _is_picture(f) and sample[f] is not None), key=lambda f: (len(f), f))
    if not isinstance(value, dict):
        return value
    value = {"id": sample["__key__"]} | value
    if fields:
        value = {k: v for k, v in value.items() if k != "image"} | {"images": [sample[field] for field in fields]}
    return value


@contextmanager
def _faults_of(files: DataFiles, paths: Sequence[Path]) -> Iterator[None]:
    """Quiet reading; what `datasets` raises becomes one line, with every broken sample of a tar named."""
    import datasets

    shown, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except (datasets.exceptions.DatasetsError, tarfile.TarError, OSError, ValueError, RecursionError) as error:
        reason = str(error.__cause__ or error).split("\n")[0][:200]
        broken = _broken_samples(paths) if files.suffix == _TAR else []
        raise MvlmError(f"{', '.join(map(str, paths))} cannot be read: {'; '.join(broken) or reason}") from None
    finally:
        datasets.logging.set_verbosity(level)
        if not shown:
            datasets.enable_progress_bars()


def _require_readable(value: Any) -> None:
    """Raise `MvlmError` for half a character anywhere in a JSON value, which `datasets` cannot store."""
    require_whole(json.dumps(value, ensure_ascii=False), "it")


def _broken_samples(paths: Sequence[Path]) -> list[str]:
    faults = []
    for path in paths:
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    held = tar.extractfile(member) if member.name.endswith(".json") else None
                    if held is not None:
                        try:
                            _require_readable(read_json(held.read()))
                        except MvlmError as error:
                            faults.append(f"{path.name}, sample {member.name}: {error}")
        except tarfile.TarError as error:
            faults.append(f"{path.name}: no tar, or one cut short ({error})")
    return faults
