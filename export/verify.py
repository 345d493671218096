"""Torch against the files of a bundle, on real rows: every scale, every phase, and the greedy answer.

Letters: P patches, m visual tokens, S positions of a prompt, V vocabulary.
Each phase gets the same input on both sides, so that a difference is that phase's own; the greedy answer then goes
through the real `Runtime` from the picture to the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.bundle import stop_ids
from export.runtime import Runtime
from export.runtime.errors import CheckFailed, MvlmError
from export.runtime.request import Request
from export.runtime.sessions import Cache, Decoder
from export.source import Source
from mvlm_core.row import Row, questions_of

# The largest difference allowed in each phase, as a share of the largest value that torch computed there. Float32
# graphs of this kind differ by about 1e-6 (a tower of twelve layers) and 1e-5 (logits after 24 layers).
TOLERANCE = {"vision": 5e-5, "connector": 5e-5, "prefill": 1e-4, "decode": 1e-4}
# Steps beyond the prompt whose logits are compared, whether or not the answer has ended, and the longest answer.
_DECODE_STEPS = 8
_MAX_NEW_TOKENS = 32
_SMALL_WEIGHTS = 20_000_000

Array = NDArray[np.float32]


@dataclass
class Difference:
    """The largest differences seen in a phase, absolute and as a share of the largest value that torch computed."""

    max_abs: float = 0.0
    max_relative: float = 0.0

    def see(self, torch_side: Tensor, file_side: Array) -> None:
        wanted = torch_side.numpy()
        if wanted.shape != file_side.shape:
            self.max_abs = self.max_relative = float("inf")
            return
        absolute = float(np.abs(wanted - file_side).max())
        relative = absolute / max(float(np.abs(wanted).max()), 1e-12)
        # np.maximum keeps NaN, which then is within no tolerance.
        self.max_abs = float(np.maximum(self.max_abs, absolute))
        self.max_relative = float(np.maximum(self.max_relative, relative))


@dataclass
class ScaleReport:
    """What was compared at one scale."""

    connector: Difference = field(default_factory=Difference)
    prefill: Difference = field(default_factory=Difference)
    decode: Difference = field(default_factory=Difference)
    prompt_lengths: set[int] = field(default_factory=set)
    kv_offsets: set[int] = field(default_factory=set)
    answers: int = 0
    tokens: int = 0
    other_answers: list[str] = field(default_factory=list)


def sample_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` questions spread evenly over the `test` split, or over all rows when there is none.

    Raises `MvlmError` when no row asks about one picture.
    """
    pool = [q for row in rows if row.split == "test" for q in questions_of(row)]
    pool = pool or [q for row in rows for q in questions_of(row)]
    if not pool:
        raise MvlmError("no row asks about one picture that stands before the question: name others with --rows")
    picked = np.linspace(0, len(pool) - 1, min(count, len(pool))).round().astype(int)
    return [pool[i] for i in picked]


@torch.no_grad()
def verify_bundle(source: Source, folder: Path, rows: Sequence[Row], progress: Callable[[int], None]) -> dict[str, Any]:
    """Compare the model with the bundle in `folder` and return the report; `progress` counts rows times scales.

    Raises `CheckFailed` naming every scale and phase that differs by more than `TOLERANCE`, and the first answer of
    each scale that is not torch's.
    """
    check = _Check(source, folder)
    with _threads_that_pay(source.model):
        for row in rows:
            values = check.look(row)
            for m in source.scales:
                check.ask(row, values, m)
                progress(1)
    faults = check.faults()
    if faults:
        raise CheckFailed(f"the exported files do not compute what the model computes: {'; '.join(faults)}")
    return check.report([row.id for row in rows])


class _Check:
    """One model and one bundle, side by side."""

    def __init__(self, source: Source, folder: Path) -> None:
        self.model, self.processor = source.model, source.processor
        # Torch and the sessions take turns; threads of one that wait for work would hold up the other.
        self.runtime = Runtime.load(folder, threads=1)
        self.decoder: Decoder = self.runtime.decoder
        self.stop_ids = set(stop_ids(source.model))
        self.vision = Difference()
        self.scales = {m: ScaleReport() for m in source.scales}

    def look(self, row: Row) -> Tensor:
        """Compare values and words, and return torch's values (1, P, ·)."""
        self.view = self.runtime.look(row.image.read())
        pixels = self.processor.image_processor([row.image.read()])["pixel_values"]  # (1, 3, H, W)
        values = self.model.encode_images(pixels)
        self.vision.see(values, self.view.values)
        self.vision.see(self.model.connector.words(values)[0], self.view.words)
        return values

    def ask(self, row: Row, values: Tensor, m: int) -> None:
        """Compare one row at one scale, phase by phase and then as a whole."""
        self.runtime.require_answerable(Request(row.question, m, max_new_tokens=1))
        report = self.scales[m]
        tokens = self.model.connector.tokens(values, m)  # (1, m, D)
        report.connector.see(tokens, self.runtime.visual_tokens(values.numpy(), m))
        if np.isinf(report.connector.max_relative):  # another scale's connector: no prompt can be built with it
            return
        text = self.processor.ask(row.question)
        ids = self.processor(text=text, images=[row.image.read()], num_visual_tokens=m)["input_ids"]  # (1, S)
        places = ids == self.model.config.image_token_id  # past the word table, where the language model has no row
        embeds = self.model.get_input_embeddings()(ids.masked_fill(places, 0))  # (1, S, D)
        embeds[places] = tokens[0]
        own = self._follow(report, embeds)
        ends = next((i for i, token in enumerate(own) if token in self.stop_ids), len(own))
        answer = self.view.ask(row.question, scale=m, max_new_tokens=len(own))
        report.answers += 1
        report.tokens += ends
        if list(answer.token_ids) != own[:ends]:
            wanted = self.processor.tokenizer.decode(own[:ends])
            report.other_answers.append(f"row {row.id}: {answer.text!r}, torch {wanted!r}")

    def _follow(self, report: ScaleReport, embeds: Tensor) -> list[int]:
        """Torch's greedy answer, with the logits of prompt and steps compared on the way: (1, S, D) -> ids."""
        length = embeds.shape[1]
        steps = min(_MAX_NEW_TOKENS, self.runtime.manifest.max_length - length)
        report.prompt_lengths.add(length)
        cache = Cache(self.decoder, length + steps)
        outputs = self.model.language_model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
        report.prefill.see(outputs.logits[0, 0], self.decoder.step(embeds[0].numpy(), cache))
        ids = [int(outputs.logits[0, -1].argmax())]
        while len(ids) < steps and (len(ids) <= _DECODE_STEPS or ids[-1] not in self.stop_ids):
            step = self.model.get_input_embeddings()(torch.tensor([ids[-1:]]))  # (1, 1, D)
            report.kv_offsets.add(cache.used)
            outputs = self.model.language_model(
                inputs_embeds=step, past_key_values=outputs.past_key_values, use_cache=True
            )
            report.decode.see(outputs.logits[0, 0], self.decoder.step(step[0].numpy(), cache))
            ids.append(int(outputs.logits[0, -1].argmax()))
        return ids

    def faults(self) -> list[str]:
        """What differs too much, scale by scale."""
        faults = _too_far("vision", self.vision)
        for m, report in self.scales.items():
            for phase in ("connector", "prefill", "decode"):
                faults += [f"scale {m}, {fault}" for fault in _too_far(phase, getattr(report, phase))]
            if report.other_answers:
                faults.append(f"scale {m}, {len(report.other_answers)} answers are others ({report.other_answers[0]})")
        return faults

    def report(self, row_ids: list[str]) -> dict[str, Any]:
        """What goes into verify.json."""
        return {
            "against": "torch, float32, onnxruntime on the CPU",
            "tolerance": TOLERANCE,
            "rows": row_ids,
            "traced": "vision tower and connectors, at a batch of two; the decoder was written, no length of it traced",
            "vision": vars(self.vision),
            "scales": {
                str(m): {
                    **{phase: vars(getattr(report, phase)) for phase in ("connector", "prefill", "decode")},
                    "answers": report.answers,
                    "answer_tokens": report.tokens,
                    "prompt_lengths": sorted(report.prompt_lengths),
                    "kv_offsets": sorted(report.kv_offsets),
                }
                for m, report in self.scales.items()
            },
        }


@contextmanager
def _threads_that_pay(model: torch.nn.Module) -> Iterator[None]:
    """One thread for a small model: a step of it is shorter than waiting for a second one on a busy machine."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) < _SMALL_WEIGHTS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _too_far(phase: str, difference: Difference) -> list[str]:
    allowed = TOLERANCE[phase]
    if difference.max_relative <= allowed:
        return []
    return [f"{phase} differs by {difference.max_relative:.2g} of its largest value (allowed {allowed:g})"]
