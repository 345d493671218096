"""Folders that pass between the verbs: written beside and renamed when whole, hashed, and described by a JSON file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .durable import exchange, sync, sync_tree
from .errors import MvlmError

FORMAT_VERSION = 1
# Of those kinds that were changed since; every earlier one is read too.
# A bench: since 2 it holds the parts that costs are composed of, since 3 those of tiles. A bundle: since 2 a model with
# tiles may be in it.
_FORMATS = {"bench": 3, "bundle": 2}
_JSON_LIMIT_BYTES = 64 * 2**20


@contextmanager
def output_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `path`; rename it to `path` if the block ends well, remove it if it does not.

    A folder that carries the final name is therefore always whole. Raises `MvlmError` when `path` holds anything
    and `overwrite` is not set.
    """
    path = Path(os.path.realpath(path))
    _take_up_abandoned(path)
    refuse_if_filled(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.partial")
    staging.mkdir()
    try:
        with _ended_by_signals():
            yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    put_in_place(staging, path)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what it has written is removed. Only a main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _take_up_abandoned(path: Path) -> None:
    """Clear up what a process that was killed outright left beside `path`: what it was replacing gets its name back."""
    for folder in path.parent.glob(f".{path.name}.*"):
        number, _, kind = folder.name.removeprefix(f".{path.name}.").partition(".")
        if kind not in ("partial", "old") or not number.isdecimal():
            continue
        if int(number) != os.getpid() and _runs(int(number)):
            continue
        if kind == "old" and not path.exists():
            folder.rename(path)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as somebody else
        return True
    return True


def refuse_if_filled(path: Path, *, overwrite: bool) -> None:
    """Raise `MvlmError` unless `path` is absent, an empty folder, or a folder that may be overwritten."""
    if path.exists() and not path.is_dir():
        raise MvlmError(f"{path} is a file, and a folder is to be written there: name another with --out")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise MvlmError(f"{path} is not empty: name another with --out, or replace it with --overwrite")


def put_in_place(staging: Path, path: Path) -> None:
    """Give `staging` the name `path`, replacing what stood there; it is on the disk before it has the name.

    There is a whole folder under the name at every moment, where the system can exchange two.
    """
    path = Path(os.path.realpath(path))  # of a link, the folder that it stands for is replaced
    sync_tree(staging)
    if not path.exists():
        staging.rename(path)
        sync(path.parent)
        return
    old = staging
    if not exchange(staging, path):
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        path.rename(old)
        staging.rename(path)
    sync(path.parent)
    shutil.rmtree(old)


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The hash of a value's canonical JSON form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON; a reader never sees half of it."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    sync(beside)
    beside.replace(path)


def read_artefact(folder: Path, name: str) -> dict[str, Any]:
    """Read `folder/name.json` and check that it says it is that artefact, in a format this version knows.

    Raises `MvlmError`: no such folder, no such file, broken JSON, another artefact, a newer format.
    """
    file = folder / f"{name}.json"
    if not file.is_file():
        raise MvlmError(f"{folder} holds no {name}.json: name the folder that the earlier verb wrote")
    if file.stat().st_size > _JSON_LIMIT_BYTES:
        raise MvlmError(f"{file} is larger than a description of an artefact can be")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MvlmError(f"{file} is not valid JSON ({error}): make the folder again") from None
    if not isinstance(value, dict) or value.get("artefact") != name:
        raise MvlmError(f"{file} does not describe a {name} folder: make it again")
    version = value.get("format_version")
    newest = _FORMATS.get(name, FORMAT_VERSION)
    if not isinstance(version, int) or version > newest:
        raise MvlmError(f"{file} has format {version}, and this mvlm reads up to {newest}: upgrade mvlm")
    return value


def require_facts(facts: Mapping[str, Any], wanted: Iterable[str], file: Path) -> None:
    """Raise `MvlmError` unless the facts of an artefact hold everything that is read from them."""
    missing = [name for name in wanted if name not in facts]
    if missing:
        raise MvlmError(f"{file} says nothing of {', '.join(missing)}: make the folder again")


def place_beside(path: Path, folder: Path) -> str:
    """Where something lies, as an artefact in `folder` says it: relative to the folder, so that they can be moved
    together and be read from anywhere; a whole path as it is."""
    return path.as_posix() if path.is_absolute() else Path(os.path.relpath(path, folder)).as_posix()


def place_said(folder: Path, said: str) -> Path:
    """Where something lies that an artefact in `folder` tells of by `place_beside`. Artefacts of before told it as it
    was typed, from wherever that was."""
    beside = Path(os.path.normpath(folder / said))
    return beside if beside.exists() or said.startswith("..") else Path(said)


def describe(name: str, **facts: Any) -> dict[str, Any]:
    """The head of an artefact's JSON file, with what it was made with, followed by `facts`."""
    packages = ("mvlm", "numpy", "torch", "transformers", "onnx", "onnxruntime", "scikit-learn", "lightgbm")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"artefact": name, "format_version": _FORMATS.get(name, FORMAT_VERSION), **facts, "versions": versions}
