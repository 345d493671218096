"""A run becomes a bundle: read, written, verified, and in its place only when it is whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from export.graphs.targets import FLOATS, PHASES, Plan, plan, target
from export.runtime.artefact import output_folder, refuse_if_filled, write_json
from export.runtime.errors import CheckFailed, MvlmError, listed
from export.runtime.views.scale import ScaleWord
from mvlm_core.data.reading import read_rows
from mvlm_core.data.row import Row
from mvlm_core.modeling.processing import prompt_of
from mvlm_core.modeling.visual_lengths import VisualLengths

from .files import graph_count, require_room, reseal, write_bundle
from .made_from import MadeFrom
from .refine import StartBar, calibration_rows, refine
from .refused import Refused, keep_refused
from .source import Source, read_source
from .verify import sample_rows, verify_bundle

AUTO = "auto"


@dataclass(frozen=True)
class Wanted:
    """What a bundle is to be made of, and what it is to be.

    Attributes:
        router: None makes a bundle without one.
        scales: None stands for the router's.
        precision: of each part, as `targets.parse_precision` reads it; None stands for the target's own, and `auto` for
            the first of its `ladder` that passes verification.
        max_length: positions a conversation may hold; None stands for all that model and target allow.
        verify_rows: how many rows are verified at each scale.
        calibration_rows: how many other rows the language model's few bits are fitted to; 0 fits them to none.
        max_loss: nats a token that the chances of reference answers may move by; None stands for the precision's own.
    """

    run: Path
    rows: Path
    router: Path | None
    scales: Sequence[ScaleWord] | None
    target: str
    precision: str | None
    max_length: int | None
    verify_rows: int
    calibration_rows: int = 64
    max_loss: float | None = None


@dataclass(frozen=True)
class MadeBundle:
    """A bundle that stands, and what came of verifying it."""

    source: Source
    plan: Plan
    rows: list[Row]
    report: dict[str, Any]
    size_bytes: int
    refused: tuple[str, ...] = ()  # precisions that `auto` tried before, each with the reason


def make_bundle(wanted: Wanted, out: Path, *, overwrite: bool, start: StartBar) -> MadeBundle:
    """Write a bundle to `out`, verified against torch on real rows.

    Raises `MvlmError` for whatever cannot be had, before anything is written, and `CheckFailed` when the files do not
    compute what the model computes; `out` is then as it was, and where a precision was named the refused bundle stands
    beside it.
    """
    refuse_if_filled(out, overwrite=overwrite)
    ladder = target(wanted.target).ladder if wanted.precision == AUTO else (wanted.precision,)
    for precision in ladder:  # what cannot be had is said before anything is loaded
        plan(wanted.target, precision, None, 1)
    source = read_source(wanted.run, wanted.router, wanted.scales)
    every_row = read_rows(wanted.rows)
    verified = sample_rows(every_row, wanted.verify_rows)
    make = partial(_make, source, wanted, (every_row, verified), overwrite=overwrite, start=start)
    named = wanted.precision != AUTO
    refused: list[str] = []
    for precision in ladder:
        try:
            return replace(make(precision, out, keep=named), refused=tuple(refused))
        except CheckFailed as error:
            refused.append(f"{precision}: {error}")
    if wanted.precision == AUTO:
        raise CheckFailed(f"no precision passes: {'; '.join(refused)}")
    passes = _next_that_passes(wanted, make, out)
    raise CheckFailed(f"{refused[0].partition(': ')[2]}{f'; --precision {passes} passes' if passes else ''}")


def _next_that_passes(wanted: Wanted, make: Callable[..., MadeBundle], out: Path) -> str | None:
    """The first precision that passes of those behind the refused one in the target's ladder; nothing of it is kept.

    Behind float32 there is none: what it does not compute, no other does.
    """
    if set(plan(wanted.target, wanted.precision, None, 1).precision.values()) == {"float32"}:
        return None
    ladder = target(wanted.target).ladder
    behind = ladder[ladder.index(wanted.precision) + 1 :] if wanted.precision in ladder else ladder
    for precision in behind:
        with TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as folder:
            try:
                make(precision, Path(folder) / "bundle", keep=False)
            except CheckFailed:
                continue
            return precision
    return None


def _make(
    source: Source, wanted: Wanted, rows: tuple[Sequence[Row], Sequence[Row]], precision: str | None, out: Path, *,
    overwrite: bool, start: StartBar, keep: bool,
) -> MadeBundle:  # fmt: skip
    """One precision, from the plan to the verified bundle; with `keep` a refused one stands beside `out`."""
    every_row, verified = rows
    asked = plan(wanted.target, precision, wanted.max_length, source.positions)
    require_positions(source, asked.positions, verified)
    few_bits = any(asked.precision[phase] not in FLOATS for phase in PHASES)
    calibrated = wanted.calibration_rows if few_bits else 0
    others = calibration_rows(every_row, verified, calibrated) if calibrated else []
    require_room(source, asked, out)
    refined = refine(source, asked, others, start)
    made_from = MadeFrom(wanted.run, wanted.rows, source.metrics_said).to_json(out)
    with output_folder(out, overwrite=overwrite) as folder:
        write_bundle(
            source, refined.plan, folder, start("writing the graphs", graph_count(source, asked)), refined.numbers
        )
        refined = replace(refined, numbers={})  # they lie in the files now, where verification reads them
        steps = start("verifying", len(verified) * len(source.scales))
        try:
            report = verify_bundle(source, folder, verified, steps, wanted.max_loss)
        except Refused as error:
            error.report |= made_from
            kept = f"it stands in {keep_refused(folder, out, error)}" if keep else ""
            raise CheckFailed("; ".join(filter(None, [str(error), refined.worst(), kept]))) from None
        report |= {"calibration": refined.facts()} | made_from
        write_json(folder / "verify.json", report)
        reseal(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
    return MadeBundle(source, refined.plan, list(verified), report, size)


def require_positions(source: Source, positions: int, rows: Sequence[Row]) -> None:
    """Raise `MvlmError` naming the rows to verify with that leave no room for an answer at their largest scale."""
    prompt, lengths = prompt_of(source.processor), VisualLengths(source.processor)
    needed: dict[str, tuple[ScaleWord, int]] = {}
    for row in rows:
        scale, visual = lengths.finest([row.image], source.scales)
        needed[row.id] = scale, len(prompt.ids(row.question, 0, 0)) + visual + 1
    if faults := [f"id {name}: {count} positions" for name, (_, count) in needed.items() if count > positions]:
        finest = next(scale for scale, count in needed.values() if count > positions)
        raise MvlmError(
            f"{len(faults)} of {len(rows)} rows to verify with do not fit into {positions} positions at scale {finest}:"
            f" name shorter ones with --rows, or allow more with --max-length{listed(faults, most=1000)}"
        )
