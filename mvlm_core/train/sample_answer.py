"""What a model in training answers to one question of the split val: loss alone does not show what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from export.runtime.views.scale import ScaleWord
from mvlm_core.data.row import Row, questions_of
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor, prompt_of

from .plan import Group

_MOST_NEW_TOKENS = 24


@dataclass(frozen=True)
class SampleAnswers:
    """Asks one question after another, greedily, at the finest scale of the run."""

    model: MvlmForConditionalGeneration
    processor: MvlmProcessor
    rows: Sequence[Row]
    scale: ScaleWord

    @torch.no_grad()
    def ask(self, number: int) -> dict[str, Any]:
        """Question `number` with what is right and what was answered, as metrics.jsonl holds it; after the last comes
        the first."""
        row = self.rows[number % len(self.rows)]
        training = self.model.training
        self.model.eval()
        batch = self.processor(images=[row.image.read()], text=[self.processor.ask(row.question)], scale=self.scale)
        length = batch["input_ids"].shape[1]
        ids = self.model.generate(**batch.to(self.model.device), max_new_tokens=_MOST_NEW_TOKENS, do_sample=False)
        self.model.train(training)
        return {
            "id": row.id, "scale": str(self.scale), "question": row.question, "answer": row.answers[0],
            "prediction": prompt_of(self.processor).answer(ids[0, length:].tolist()),
        }  # fmt: skip


def askable(groups: Sequence[Group]) -> list[Row]:
    """The first question of each picture that can be asked alone."""
    first = [next(iter(questions_of(group.rows[0])), None) for group in groups]
    return [row for row in first if row is not None]
