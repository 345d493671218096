"""One line of labels.parquet: what was answered, how right it is, and what the model gives to the reference answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any

from export.runtime.prompt import Prompt
from export.runtime.views.scale import ScaleWord
from mvlm_core.data.row import Row
from mvlm_core.modeling.processing import MvlmProcessor, turn
from mvlm_core.scoring import Metric
from mvlm_core.scoring.of_rows import score_row

from .packed_generation import Answered


@dataclass
class LabelLines:
    """Makes the lines of some pictures. Scales must come from the finest down: coarser ones are held against it where
    the metric is agreement.
    """

    processor: MvlmProcessor
    prompt: Prompt
    stops: Sequence[int]
    metrics: Mapping[str, Metric]
    _own: dict[str, tuple[list[int], str]] = field(default_factory=dict)
    _taught: dict[str, list[int]] = field(default_factory=dict)

    def reference(self, row: Row) -> list[int]:
        """The ids of what the model is to answer, with the end token; of `agreement` the finest scale's own answer."""
        if self.metrics[row.id].name == "agreement":
            return self._own.get(row.id, ([], ""))[0]
        if row.id not in self._taught:
            self._taught[row.id] = reference_ids(self.processor, self.prompt, row, self.stops)
        return self._taught[row.id]

    def line(
        self, row: Row, scale: ScaleWord, taken: tuple[int, int], sample: int, answer: Answered
    ) -> dict[str, Any]:  # fmt: skip
        """The line of one answer at one scale, at which the picture has `taken` tokens and tiles; `sample` 0 is the
        greedy one."""
        prediction, metric = self.prompt.answer(answer.token_ids), self.metrics[row.id]
        nats, length = (answer.reference.nats, answer.reference.tokens) if answer.reference else (None, 1)
        if metric.name == "agreement" and row.id not in self._own:
            end = list(self.stops[:1]) if answer.ended else []
            self._own[row.id] = ([*answer.token_ids, *end], prediction)
            nats, length = answer.nats, len(answer.token_ids) + len(end)
        finest = self._own[row.id][1] if metric.name == "agreement" else ""
        return {
            "id": row.id, "group": row.group, "task": row.task, "split": row.split,
            "scale": str(scale), "num_visual_tokens": taken[0], "tiles": taken[1],
            "sample": sample, "metric": str(metric),
            "score": score_row(row, metric, prediction, finest=finest),
            "loss": None if nats is None else nats / max(length, 1),
            "probability": None if nats is None else exp(-nats),
            "confidence": answer.confidence, "margin": answer.margin, "prediction": prediction,
            "answer": finest if metric.name == "agreement" else row.answers[0],
        }  # fmt: skip


def reference_ids(processor: MvlmProcessor, prompt: Prompt, row: Row, stops: Sequence[int]) -> list[int]:
    """The first answer of a row as the model was taught it, with its end token; empty for a row without answers."""
    if not row.answers:
        return []
    asked = prompt.ids(row.question, 1, processor.image_token_id)
    whole = processor.encode(turn(row.question, row.answers[0])).ids
    told = whole[len(asked) :] if whole[: len(asked)] == asked else prompt.text_ids(row.answers[0])
    ends = next((n for n, token in enumerate(told) if token in stops), len(told))
    return [*told[:ends], *(told[ends : ends + 1] or stops[:1])]
