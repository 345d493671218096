"""What is settled, said and refused before a sweep begins."""

from __future__ import annotations

from collections.abc import Sequence

from export.runtime.errors import listed
from export.runtime.views.scale import Scale, ScaleWord, coarse_to_fine
from mvlm_core.data.row import Row
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor
from mvlm_core.modeling.scales import require_scales

from .asking import Asking, others_of


def beside_of(
    asked: Sequence[Row], named: ScaleWord | None, model: MvlmForConditionalGeneration, processor: MvlmProcessor,
    scales: Sequence[ScaleWord],
) -> ScaleWord | None:  # fmt: skip
    """At which scale pictures are shown beside the one in question: `named`, or what the run shows by default.

    None where no row has several. Raises `MvlmError` for a scale that the model does not allow.
    """
    if not any(map(others_of, asked)):
        return None
    beside = Scale.parse(named or processor.default_scale or coarse_to_fine(scales)[-1]).word
    require_scales((beside,), model.connector.scales)
    return beside


def cost(asked: Sequence[Row], scales: int, samples: int, beside: ScaleWord | None) -> str:
    """What a sweep takes, in a line."""
    each = scales * samples
    told = f"{len(asked):,} questions at {scales} scales: {each * len(asked):,} answers"
    among = [row for row in asked if others_of(row)]
    if not among:
        return told
    pictures = each * sum(1 + others_of(row) for row in among)
    return (
        f"{told}; {each * len(among):,} of them with one of several pictures at a scale and the others at"
        f" {beside} (--beside), which read {pictures:,} pictures"
    )


def too_long(
    asked: Sequence[Row], asking: Asking, model: MvlmForConditionalGeneration, scales: Sequence[ScaleWord],
    beside: ScaleWord | None, most: int,
) -> str | None:  # fmt: skip
    """Which rows are longer than the model was made for, an answer of `most` tokens among it, and what to do."""
    positions, finest = model.config.text_config.max_position_embeddings, coarse_to_fine(scales)[-1]
    faults = []
    for row in asked:
        needed = asking.length(row, scales, beside or finest) + most
        if needed > positions:
            fits = asking.that_fits(row, scales, needed - positions)
            faults.append(f"id {row.id}: {needed} tokens" + ("" if fits is None else f"; at {fits} it fits"))
    if not faults:
        return None
    return (
        f"{len(faults)} rows at scale {finest}, with an answer of {most}, are more than the {positions} positions of"
        f" the language model: leave them or that scale out{listed(faults, most=1000)}"
    )
