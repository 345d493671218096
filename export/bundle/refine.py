"""What calibration makes of a plan: the forms that lose the least on real rows, and numbers for those of four bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from export.graphs.grids import Numbers
from export.graphs.targets import FLOATS, PHASES, Plan
from export.rounding.budget import cheapest_loss
from export.rounding.calibrate import calibrate, calibrated_layers
from export.rounding.layers import every_layer
from export.rounding.sensitivity import Losses, losses
from export.runtime.errors import MvlmError
from mvlm_core.data.labelled import labelled
from mvlm_core.data.row import Row

from .embed import embed_rows
from .source import Source

# Opens a bar of a label and a length, and returns what advances it.
StartBar = Callable[[str, int], Callable[[int], None]]
# What a form costs a layer is told apart by fewer rows than its numbers are rounded with.
_MEASURED_ROWS = 16
_NAMED = 3


@dataclass(frozen=True)
class Refined:
    """A plan with its forms chosen, and what was found on the way.

    Attributes:
        numbers: phase -> layer -> numbers of four bits.
        foretold: phase -> layer -> nats a token that its form is foretold to cost.
        rows: how many rows it was calibrated with.
    """

    plan: Plan
    numbers: Mapping[str, Mapping[str, Numbers]]
    foretold: Mapping[str, Mapping[str, float]]
    rows: int

    def facts(self) -> dict[str, Any]:
        """What goes into verify.json."""
        return {"rows": self.rows, "foretold_nats": {phase: dict(by) for phase, by in self.foretold.items()}}

    def worst(self) -> str:
        """The layers that are foretold to cost most, as a clause; empty where nothing was measured."""
        ranked = sorted(
            ((nats, f"{layer} ({self.plan.recipe(phase).word(layer)}, {phase}: {nats:.2g})")
             for phase, by_layer in self.foretold.items() for layer, nats in by_layer.items()),
            reverse=True,
        )  # fmt: skip
        return f"the layers that cost most: {', '.join(text for _, text in ranked[:_NAMED])}" if ranked else ""


def calibration_rows(rows: Sequence[Row], verified: Sequence[Row], count: int) -> list[Row]:
    """`count` questions, none about a picture that is verified with, spread evenly; those of the test split are left.

    Raises `MvlmError` when there are none.
    """
    taken = {row.group for row in verified}
    pool = [q for row in rows if row.split != "test" and row.group not in taken for q in labelled(row)]
    if not pool:
        raise MvlmError(
            "no row is left to calibrate with, beside those that are verified: fewer --verify-rows, more rows, or"
            " --calibration-rows 0, which rounds each weight by itself"
        )
    step = max(len(pool) / count, 1)
    return [pool[int(i * step)] for i in range(min(count, len(pool)))]


def refine(source: Source, asked: Plan, rows: Sequence[Row], start: StartBar) -> Refined:
    """Choose the forms of layers and round those of four bits, from what `rows` put through the model."""
    phases = [phase for phase in PHASES if asked.precision[phase] not in FLOATS]
    if not rows or not phases:
        return Refined(asked, {}, {}, 0)
    embedded = embed_rows(source, rows)
    language: Any = source.model.language_model
    measured = _measured(language, asked, phases, embedded, start)
    plan = replace(asked, words=dict(asked.words) | _chosen(language, asked, phases, measured))
    numbers: dict[str, Mapping[str, Numbers]] = {}
    for phase in phases:
        same = next((other for other in numbers if plan.words[other] == plan.words[phase]), None)
        if same:
            numbers[phase] = numbers[same]
        elif calibrated_layers(language, plan.words[phase]):
            advance = start(f"rounding for {phase}", len(language.model.layers))
            numbers[phase] = calibrate(language, [row for row, _ in embedded], plan.words[phase], advance)
    foretold = {
        phase: {layer: by_form[plan.recipe(phase).word(layer)] for layer, by_form in measured.items()}
        for phase in phases if asked.precision[phase] in asked.target.choices
    }  # fmt: skip
    return Refined(plan, numbers, foretold, len(rows))


def _measured(
    language: Any, asked: Plan, phases: Sequence[str], embedded: Sequence[tuple[Tensor, int]], start: StartBar
) -> Losses:
    choices = [asked.target.choices[asked.precision[phase]] for phase in phases
               if asked.precision[phase] in asked.target.choices]  # fmt: skip
    words = sorted({word for choice in choices for word in choice.forms})
    some = embedded[:: max(len(embedded) // _MEASURED_ROWS, 1)][:_MEASURED_ROWS]
    if not words:
        return {}
    return losses(language, some, words, start("measuring layers", len(some) + len(every_layer(language)) - 1))


def _chosen(language: Any, asked: Plan, phases: Sequence[str], measured: Losses) -> dict[str, Mapping[str, str]]:
    sizes = {layer.name: layer.size for layer in every_layer(language)[:-1]}
    return {
        phase: dict(asked.words[phase]) | cheapest_loss(measured, sizes, asked.target.choices[asked.precision[phase]])
        for phase in phases if asked.precision[phase] in asked.target.choices
    }  # fmt: skip
