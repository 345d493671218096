"""What is still there after a power cut, and a folder that takes another's place in one step."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# Of Linux: linux/fcntl.h and linux/fs.h.
_HERE, _EXCHANGE = -100, 2


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Where folders cannot be opened they need none."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder, and in those below it, is on the disk."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders swap their names, so that neither name is ever without one. False where that cannot be done."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
