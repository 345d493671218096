"""The files of a bundle are those that its manifest names: hashed, once or each time, and no other is read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from .artefact import sha256_file
from .errors import MvlmError
from .graph_facts import data_files

Verify = Literal["always", "changed", "never"]
_MOST_FILES = 4096
# What was hashed is remembered in here, beside the files; a bundle that is smaller is hashed in no time.
_REMEMBERED = Path("verified") / "files.json"
_WORTH_REMEMBERING_BYTES = 64 * 2**20
Files = dict[str, tuple[str, int]]  # name -> SHA-256, bytes


def require_files(folder: Path, files: Files, sealed: str, verify: Verify) -> None:
    """Raise `MvlmError` for files that are missing or changed, that lie outside, or that are too many.

    `verify`: "always" hashes each; "changed" only those of a large bundle that are not as they were (size, times,
    inode) when they were hashed; "never" looks at sizes alone. `sealed` is the hash of the manifest.
    """
    if verify not in get_args(Verify):
        raise MvlmError(f"there is no verify={verify!r}: name one of {', '.join(get_args(Verify))}", code="bad-option")
    if len(files) > _MOST_FILES:
        raise MvlmError(f"{folder / 'bundle.json'} names {len(files)} files: at most {_MOST_FILES} are read")
    home, wrong = folder.resolve(), []
    large = sum(size for _, size in files.values()) >= _WORTH_REMEMBERING_BYTES
    known = _remembered(folder, sealed) if large and verify == "changed" else {}
    for name, (sha256, size) in sorted(files.items()):
        path = folder / name
        if not path.resolve().is_relative_to(home):
            raise MvlmError(f"{folder / 'bundle.json'} names {name}, outside the bundle: export again", code="bad-path")
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != size or not _holds(path, sha256, known.get(name), verify):
            wrong.append(f"{name} was changed")
    if wrong:
        raise MvlmError(f"the bundle {folder} is not whole: {', '.join(wrong)}: export again", code="changed-bundle")
    if large and verify != "never":
        _remember(folder, sealed, {name: _state(folder / name) for name in files})


def require_known_data(folder: Path, graphs: Iterable[str], files: Files) -> None:
    """Raise `MvlmError` for a graph whose weights lie in a file that the manifest gives no hash for."""
    for graph in graphs:
        unknown = sorted(data_files(folder / graph) - set(files))
        if unknown:
            raise MvlmError(
                f"{folder / graph} reads {', '.join(unknown)}, which bundle.json gives no hash for: export again",
                code="bad-path",
            )


def _holds(path: Path, sha256: str, known: list[int] | None, verify: Verify) -> bool:
    return verify == "never" or known == _state(path) or sha256_file(path) == sha256


def _state(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]


def _remembered(folder: Path, sealed: str) -> dict[str, Any]:
    try:
        told = json.loads((folder / _REMEMBERED).read_text(encoding="utf-8"))
        return dict(told["files"]) if told["manifest_sha256"] == sealed else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _remember(folder: Path, sealed: str, states: dict[str, list[int]]) -> None:
    with contextlib.suppress(OSError):  # where nothing may be written, all is hashed each time
        (folder / _REMEMBERED).parent.mkdir(exist_ok=True)
        (folder / _REMEMBERED).write_text(json.dumps({"manifest_sha256": sealed, "files": states}), encoding="utf-8")
