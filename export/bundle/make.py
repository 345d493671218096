"""A run becomes a bundle: read, written, verified, and in its place only when it is whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.graphs.targets import Plan, plan
from export.runtime.artefact import output_folder, refuse_if_filled, write_json
from export.runtime.errors import MvlmError, listed
from mvlm_core.data.reading import read_rows
from mvlm_core.data.row import Row
from mvlm_core.modeling.processing import prompt_of

from .files import graph_count, require_room, reseal, write_bundle
from .source import Source, read_source
from .verify import sample_rows, verify_bundle

# Opens a bar of a label and a length, and returns what advances it.
StartBar = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True)
class Wanted:
    """What a bundle is to be made of, and what it is to be.

    Attributes:
        router: None makes a bundle without one.
        scales: None stands for the router's.
        precision: of each part, as `targets.parse_precision` reads it; None stands for the target's own.
        max_length: positions a conversation may hold; None stands for all that model and target allow.
        verify_rows: how many rows are verified at each scale.
    """

    run: Path
    rows: Path
    router: Path | None
    scales: Sequence[int] | None
    target: str
    precision: str | None
    max_length: int | None
    verify_rows: int


@dataclass(frozen=True)
class MadeBundle:
    """A bundle that stands, and what came of verifying it."""

    source: Source
    plan: Plan
    rows: list[Row]
    report: dict[str, Any]
    size_bytes: int


def make_bundle(wanted: Wanted, out: Path, *, overwrite: bool, start: StartBar) -> MadeBundle:
    """Write a bundle to `out`, verified against torch on real rows.

    Raises `MvlmError` for whatever cannot be had, before anything is written, and `CheckFailed` when the files do not
    compute what the model computes; `out` is then as it was.
    """
    refuse_if_filled(out, overwrite=overwrite)
    plan(wanted.target, wanted.precision, None, 1)  # what cannot be had is said before anything is loaded
    source = read_source(wanted.run, wanted.router, wanted.scales)
    asked = plan(wanted.target, wanted.precision, wanted.max_length, source.positions)
    rows = sample_rows(read_rows(wanted.rows), wanted.verify_rows)
    require_positions(source, asked.positions, rows)
    require_room(source, asked, out)
    with output_folder(out, overwrite=overwrite) as folder:
        write_bundle(source, asked, folder, start("writing the graphs", graph_count(source, asked)))
        report = verify_bundle(source, folder, rows, start("verifying", len(rows) * len(source.scales)))
        write_json(folder / "verify.json", report)
        reseal(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
    return MadeBundle(source, asked, rows, report, size)


def require_positions(source: Source, positions: int, rows: Sequence[Row]) -> None:
    """Raise `MvlmError` naming the rows to verify with that leave no room for an answer at the finest scale."""
    prompt, finest = prompt_of(source.processor), max(source.scales)
    needed = {row.id: len(prompt.ids(row.question, finest, source.model.config.image_token_id)) + 1 for row in rows}
    if faults := [f"id {name}: {count} positions" for name, count in needed.items() if count > positions]:
        raise MvlmError(
            f"{len(faults)} of {len(rows)} rows to verify with do not fit into {positions} positions at scale {finest}:"
            f" name shorter ones with --rows, or allow more with --max-length{listed(faults, most=1000)}"
        )
