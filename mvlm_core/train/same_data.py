"""A stopped run goes on with the rows and pictures that it began with, wherever they lie by now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.run_folder import read_run_facts
from mvlm_core.data.reading import rows_sha256

Say = Callable[[str], None]


def require_same_rows(out: Path, rows: Path, say: Say) -> None:
    """Raise `MvlmError` unless the rows are those that an unfinished run began with."""
    began = read_run_facts(out).get("rows_sha256")
    if began is None:
        say(f"{out} does not say which rows it began with, so that these are the same is taken on trust")
    elif began != rows_sha256(rows):
        raise MvlmError(
            f"{out} began with other rows than those of {rows}: name those with rows=FOLDER, or start anew with"
            " --overwrite"
        )


def require_same_pictures(out: Path, rows: Path, pictures_sha256: Callable[[], str] | None, say: Say) -> None:
    """Raise `MvlmError` unless the pictures that lie beside the rows hold what they held when the run began.

    Without a hash, those of rows that are streamed are not known before they are read, and `say` is told.
    """
    began = read_run_facts(out).get("pictures_sha256")
    if began is None or pictures_sha256 is None:
        say(f"that the pictures of {rows} are those that {out} began with is taken on trust")
    elif began != pictures_sha256():
        raise MvlmError(
            f"{out} began with other pictures than those of {rows}: some were changed since; put them back, or start"
            " anew with --overwrite"
        )
