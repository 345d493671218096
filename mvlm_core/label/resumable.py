"""Work that can be stopped: its parts lie beside the folder that is asked for until all are there."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from export.runtime.artefact import sha256_json, write_json
from export.runtime.errors import MvlmError

# How long a process waits for the first one, which makes the folder of parts once it has read model and rows.
_PATIENCE_S, _PAUSE_S = 900.0, 0.5


def parts_folder(out: Path, key: dict[str, Any]) -> Path:
    """The folder of parts beside `out`. `key` says what they are parts of; those of anything else are thrown away."""
    folder = _beside(out)
    file = folder / "key.json"
    if _says(file) != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(file, key)
    return folder


def parts_of_first(out: Path, key: dict[str, Any]) -> Path | None:
    """The folder of parts that the first of several processes makes; None where all are done and put together by then.

    Raises `MvlmError` when it does not come.
    """
    folder, until = _beside(out), time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        if finished(out, key):
            return None
        if _says(folder / "key.json") == key:
            return folder
        time.sleep(_PAUSE_S)
    raise MvlmError(
        f"the first process has made no {folder} in {_PATIENCE_S:.0f} s: start all processes of a sweep with the same"
        " words, the one of rank 0 among them"
    )


def finished(out: Path, key: dict[str, Any]) -> bool:
    """Whether `out` holds what these parts make."""
    facts = _says(out / "labels.json")
    return isinstance(facts, dict) and facts.get("key_sha256") == sha256_json(key)


def _beside(out: Path) -> Path:
    out = Path(os.path.realpath(out))
    return out.with_name(f".{out.name}.parts")


def _says(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # not there, or not whole yet
        return None
