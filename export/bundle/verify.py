"""Torch against the files of a bundle, on real rows: every scale, every phase, the greedy answer and what it is worth.

Letters: P patches, m visual tokens, S positions of a prompt, V vocabulary.
Each phase gets the same input on both sides, so that a difference is that phase's own; where a phase computes with few
bits, torch rounds the same weights and activations. What the rounding itself costs is then measured against the model
as it was trained: how far the chances of the tokens of the reference answer have moved, and the greedy answer, which
goes through the real `Runtime`, from the picture to the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.graphs.targets import FLOATS, PHASES, Plan, target
from export.runtime import Runtime
from export.runtime.answer import Clock
from export.runtime.backends.onnx import Cache, Decoder, Device
from export.runtime.decode.sampling import EmbeddingTable
from export.runtime.errors import MvlmError
from export.runtime.features import image_features, question_features, size_features
from export.runtime.manifest import Manifest, read_manifest
from export.runtime.request import Request
from export.runtime.routing.by_picture import in_tokens
from export.runtime.routing.reading import Read, read_question
from export.runtime.routing.router import Router
from export.runtime.views.scale import ScaleWord
from mvlm_core.data.labelled import labelled
from mvlm_core.data.row import Row
from mvlm_core.label.shown_pictures import ShownPictures
from mvlm_core.modeling.kv_cache import cache_argument, cache_of
from mvlm_core.modeling.processing import prompt_of
from mvlm_core.scoring.of_rows import metrics_like, score_row

from .difference import Difference
from .embed import embed_question, shown_row
from .fidelity import Fidelity, stacked
from .files import stop_ids
from .pictures import PictureCheck
from .reference import HeldNumbers, as_written, weight_faults
from .refused import Refused
from .source import Source
from .table import table_faults
from .tolerance import Lost, coarsest, points_lost, tolerance

# Steps beyond the prompt whose logits are compared, whether or not the answer has ended, and the longest answer.
_DECODE_STEPS = 8
_MAX_NEW_TOKENS = 32
_SMALL_WEIGHTS = 20_000_000
_FAULTS_SHOWN = 3

Array = NDArray[np.float32]


@dataclass
class ScaleReport:
    """What was compared at one scale."""

    connector: Difference = field(default_factory=Difference)
    prefill: Difference = field(default_factory=Difference)
    decode: Difference = field(default_factory=Difference)
    fidelity: Fidelity = field(default_factory=Fidelity)
    prompt_lengths: set[int] = field(default_factory=set)
    kv_offsets: set[int] = field(default_factory=set)
    tokens: int = 0
    other_answers: list[str] = field(default_factory=list)
    torch_scores: list[float] = field(default_factory=list)
    file_scores: list[float] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    @property
    def answers(self) -> int:
        return len(self.groups)

    @property
    def lost(self) -> Lost:
        return points_lost(self.torch_scores, self.file_scores, self.groups)


def sample_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` questions spread evenly over the `test` split, or over all rows when there is none.

    Of a conversation each question about a picture is asked by itself. Raises `MvlmError` when no row asks about one.
    """
    pool = [q for row in rows if row.split == "test" and not row.has_clip for q in labelled(row)]
    pool = pool or [q for row in rows if not row.has_clip for q in labelled(row)]
    if not pool:
        raise MvlmError("no row asks about a picture: name others with --rows")
    picked = np.linspace(0, len(pool) - 1, min(count, len(pool))).round().astype(int)
    return [pool[i] for i in picked]


def plan_of(manifest: Manifest) -> Plan:
    """What a bundle was asked to be, from its manifest."""
    made_for = target(manifest.target)
    old = {phase: made_for.words(manifest.precision[phase]) if manifest.forms is None else {} for phase in PHASES}
    return Plan(made_for, manifest.precision, manifest.decoder.positions, manifest.forms or old)


@torch.no_grad()
def verify_bundle(
    source: Source, folder: Path, rows: Sequence[Row], progress: Callable[[int], None], max_loss: float | None = None
) -> dict[str, Any]:
    """Compare the model with the bundle in `folder` and return the report; `progress` counts rows times scales.

    `max_loss` is how far, in nats a token, the chances of a reference answer's tokens may have moved on average at any
    scale; left out, what `TOLERANCES` allow the precision.

    Raises `Refused`, with the report as far as it goes, naming every scale and phase that differs by more than
    `TOLERANCES` allow its precision, the first answer of each scale that may not be another, every scale that lost too
    much, and every weight and node of the language model that is not the one that belongs there. `MvlmError` without
    rows, or for another model's bundle.
    """
    if not rows:
        raise MvlmError("there are no rows to verify with: name some with --rows")
    manifest = read_manifest(folder)
    if manifest.model_sha256 != source.model_sha256:
        raise MvlmError(f"{folder} was made from another run: name the one it was exported from with --run")
    try:
        check = _Check(source, manifest, rows, max_loss)
        with _threads_that_pay(source.model):
            for row in rows:
                shown = check.look(row)
                check.route(row)
                for scale in source.scales:
                    check.ask(row, shown, scale)
                    progress(1)
    except MvlmError as error:
        if error.code != "engine-failed":
            raise
        raise Refused(f"the exported files do not run: {error}", {}) from None
    faults, report = check.faults(), check.report([row.id for row in rows])
    if faults:
        raise Refused(f"the exported files do not compute what the model computes: {'; '.join(faults)}", report)
    return report


class _Check:
    """One model and one bundle, side by side."""

    def __init__(self, source: Source, manifest: Manifest, rows: Sequence[Row], max_loss: float | None) -> None:
        self.source = source
        self.model, self.processor, self.manifest = source.model, source.processor, manifest
        self.metrics = metrics_like(rows, source.metrics_said)
        self.plan = plan_of(manifest)
        # Torch and the sessions take turns; threads of one that wait for work would hold up the other. Files for
        # other engines run here too: their operators are ONNX's own.
        device = Device(threads=1)
        self.runtime = Runtime(manifest, device)
        self.decoder: Decoder = self.runtime.decoder
        self.table = EmbeddingTable(manifest)
        self.max_loss = coarsest(list(manifest.precision.values())).kl if max_loss is None else max_loss
        self.held = {phase: self._held(phase) for phase in PHASES if manifest.precision[phase] not in FLOATS}
        self.prompt = prompt_of(self.processor)
        self.stop_ids = set(stop_ids(source.model))
        self.router = self._torch_router(device)
        self.vision, self.pictures = Difference(), PictureCheck(source)
        self.scales = {scale: ScaleReport() for scale in source.scales}
        self.choices: list[tuple[ScaleWord, ScaleWord | None]] = []  # torch's features, the files'

    def _held(self, phase: str) -> HeldNumbers:
        facts = self.manifest.decoder
        graph = facts.prefill if phase == "prefill" and facts.prefill else facts.graph
        return HeldNumbers(self.manifest.path(graph.file), self.model.language_model, self.plan.recipe(phase))

    def _torch_router(self, device: Device) -> Router | None:
        facts = self.manifest.router
        return Router(self.manifest.path(facts.file), facts, self.manifest.scales, device) if facts else None

    def look(self, row: Row) -> ShownPictures:
        """Compare values and words, and return the picture as torch has encoded it."""
        picture, shown = row.image.read(), shown_row(self.source, row, self.source.scales)
        self.view = self.runtime.look_clip(picture) if row.has_clip else self.runtime.look(picture)
        self.words = shown.words[0]  # (P, D)
        self.vision.see(shown.values[:1], self.view.values)
        self.vision.see(self.words, self.view.words)
        self.pictures.see(self.runtime, row, shown)
        return shown

    def route(self, row: Row) -> None:
        """Compare the router's choice on torch's features with the one that the runtime makes from the files."""
        if self.router is None:
            return
        words = self.words.numpy()
        ids = self.prompt.question_ids(row.question)
        tokens = self.model.get_input_embeddings()(torch.tensor(ids)).numpy()  # (T, D)
        features = question_features(row.question, tokens, words)
        picture = self.router.look(words)
        read = None if picture is None else Read(picture, read_question(tokens))
        image, costs = image_features(words), in_tokens(self.router, self.view)
        if self.source.views:
            image = np.concatenate([image, size_features(*self.view.size)])
        wanted = self.router.choose(image, features, read=read, costs=costs).scale
        answer = self.view.ask(row.question, max_new_tokens=1)
        self.choices.append((wanted, answer.scale if answer.escalated is None else answer.escalated))

    def ask(self, row: Row, shown: ShownPictures, scale: ScaleWord) -> None:
        """Compare one row at one scale, phase by phase and then as a whole."""
        self.runtime.require_answerable(Request(row.question, scale, max_new_tokens=1), self.view)
        report, m = self.scales[scale], self.source.tokens(scale)
        values = self.pictures.values(shown, scale)  # (n, P, ·)
        tokens = self.model.connector.tokens(values, m)  # (n, m, D)
        report.connector.see(tokens, self.runtime.visual_tokens(values.numpy(), m))
        if np.isinf(report.connector.max_relative):  # another scale's connector: no prompt can be built with it
            return
        embeds, ids = embed_question(self.source, row, shown, scale)  # (1, S, D), (1, S)
        self.pictures.see_prompt(self.runtime, self.view, row, scale, ids[0].tolist())
        self.vision.see(values, self.view.seen.values(self.view.at(scale).laid.shown.views, Clock()))
        steps = min(_MAX_NEW_TOKENS, self.manifest.max_length - embeds.shape[1])
        own = self._answer(embeds, max(steps, 1))
        answer = self.view.ask(row.question, scale=scale, max_new_tokens=len(own))
        said = self.prompt.text_ids(row.answers[0]) if row.answers else own
        wanted_ids = [*said[: max(steps, 1) - 1], min(self.stop_ids)]
        more = own[: max(min(steps, _DECODE_STEPS + 1) - len(wanted_ids), 0)]
        theirs, words = embeds.clone(), ids != self.model.config.image_token_id
        theirs[words] = self._looked_up(ids[words])
        self._follow(report, (embeds, theirs), wanted_ids, more)
        ends = next((i for i, token in enumerate(own) if token in self.stop_ids), len(own))
        wanted = self.prompt.answer(own[:ends])
        report.tokens += ends
        report.groups.append(row.group)
        for told, scores in ((wanted, report.torch_scores), (answer.text, report.file_scores)):
            scores.append(score_row(row, self.metrics.of[row.id], told, finest=wanted))
        if list(answer.token_ids) != own[:ends]:
            report.other_answers.append(f"row {row.id}: {answer.text!r}, torch {wanted!r}")

    def _answer(self, embeds: Tensor, steps: int) -> list[int]:
        """The model's own greedy answer, and a few tokens beyond where it ends: (1, S, D) -> ids."""
        table = self.model.get_input_embeddings()
        outputs = self.model.language_model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
        ids = [int(outputs.logits[0, -1].argmax())]
        while len(ids) < steps and (len(ids) <= _DECODE_STEPS or ids[-1] not in self.stop_ids):
            outputs = self.model.language_model(
                inputs_embeds=table(torch.tensor([ids[-1:]])), use_cache=True, **cache_argument(cache_of(outputs))
            )
            ids.append(int(outputs.logits[0, -1].argmax()))
        return ids

    def _looked_up(self, ids: Tensor) -> Tensor:
        """The bundle's own embeddings: ids (T,) -> (T, D)."""
        return torch.from_numpy(self.table.rows(ids.tolist()))

    def _follow(self, report: ScaleReport, embeds: tuple[Tensor, Tensor], answer: list[int], more: list[int]) -> None:
        """Compare the logits of a prompt, (1, S, D) as model and bundle embed it, and of each step behind it: the
        reference answer, whose choices count as loss, and `more`."""
        own, theirs = embeds
        length, ids = own.shape[1], [*answer, *more]
        report.prompt_lengths.add(length)
        report.kv_offsets |= set(range(length, length + len(ids)))
        own_steps = self.model.get_input_embeddings()(torch.tensor([ids]))  # (1, T, D)
        steps = self._looked_up(torch.tensor(ids))[None]
        cache = Cache(self.decoder, length + len(ids))
        found = [self.decoder.step(theirs[0].numpy(), cache)]
        found += [self.decoder.step(steps[0, i : i + 1].numpy(), cache) for i in range(len(ids))]
        language = self.model.language_model
        wanted = language(inputs_embeds=torch.cat([own, own_steps], dim=1), logits_to_keep=len(ids) + 1).logits[0]
        report.fidelity.see(wanted[: len(answer)], stacked(found[: len(answer)]), torch.tensor(answer))
        same = self._rounded(theirs, steps) if self.held else wanted  # (T + 1, V)
        report.prefill.see(same[0], found[0])
        for logits, step in zip(same[1:], found[1:], strict=True):
            report.decode.see(logits, step)

    def _rounded(self, embeds: Tensor, steps: Tensor) -> Tensor:
        """The logits of torch with the weights and activations of the files: (1, S, D), (1, T, D) -> (T + 1, V)."""
        language, past = self.model.language_model, None
        for read in self.decoder.pieces(embeds[0].numpy()):
            piece = torch.from_numpy(read)[None]
            with self._as_written("prefill"):
                outputs = language(inputs_embeds=piece, use_cache=True, logits_to_keep=1, **cache_argument(past))
            past = cache_of(outputs)
        logits = outputs.logits[0]
        with self._as_written("decode"):
            outputs = language(inputs_embeds=steps, use_cache=True, **cache_argument(past))
        return torch.cat([logits, outputs.logits[0]])

    def _as_written(self, phase: str) -> AbstractContextManager[None]:
        if phase not in self.held:
            return nullcontext()
        one_by_one = phase == "decode"
        return as_written(self.model.language_model, self.plan.recipe(phase), self.held[phase], one_by_one=one_by_one)

    def faults(self) -> list[str]:
        """What differs too much, part by part and scale by scale."""
        precision = self.manifest.precision
        faults = [*self.pictures.faults(), *_too_far("vision", precision["tower"], self.vision)]
        for m, report in self.scales.items():
            for phase in ("connector", *PHASES):
                # A step reads the cache that the prompt's phase wrote, in that phase's precision.
                behind = [precision["prefill"]] if phase == "decode" else []
                found = _too_far(phase, precision[phase], getattr(report, phase), *behind)
                faults += [f"scale {m}, {fault}" for fault in found]
            faults += [f"scale {m}, {fault}" for fault in self._answer_faults(report)]
        same = sum(wanted == chosen for wanted, chosen in self.choices)
        rounded = [precision["tower"], *([precision["decode"]] if self.manifest.embedding.block else [])]
        if same < coarsest(rounded).choices * len(self.choices):
            faults.append(
                f"the router chooses otherwise for {len(self.choices) - same} of {len(self.choices)} questions"
            )
        return faults + self._weight_faults()

    def _answer_faults(self, report: ScaleReport) -> list[str]:
        allowed = coarsest(list(self.manifest.precision.values()))
        faults = []
        if report.answers and not (lost := report.fidelity.mean_kl(report.groups)).points <= self.max_loss:
            faults.append(
                f"the chances of the next token moved by {lost.points:.3g} nats (interval {lost.low:.3g} to"
                f" {lost.high:.3g}, allowed {self.max_loss:g})"
            )
        if report.answers - len(report.other_answers) < allowed.answers * report.answers:
            faults.append(f"{len(report.other_answers)} answers are others ({report.other_answers[0]})")
        if report.answers and report.lost.low > allowed.points:
            lost = report.lost
            faults.append(f"{lost.points:.1f} points of accuracy are lost (interval {lost.low:.1f} to {lost.high:.1f})")
        return faults

    def _weight_faults(self) -> list[str]:
        facts = self.manifest.decoder
        faults = table_faults(self.model, self.plan, self.manifest)
        files = {"decode": facts.graph.file, "prefill": facts.prefill.file if facts.prefill else None}
        for phase, file in files.items():
            if file is None:
                continue
            calibrated = self.manifest.calibrated.get(phase, [])
            found = weight_faults(self.model.language_model, self.plan, phase, self.manifest.path(file), calibrated)
            more = f" and {len(found) - _FAULTS_SHOWN} more" if len(found) > _FAULTS_SHOWN else ""
            faults += [f"{file}: {', '.join(found[:_FAULTS_SHOWN])}{more}"] if found else []
        return faults

    def report(self, row_ids: list[str]) -> dict[str, Any]:
        """What goes into verify.json."""
        precision = self.manifest.precision
        return {
            "against": "torch, float32; the files ran in onnxruntime on the CPU",
            "target": self.manifest.target,
            "precision": precision,
            "tolerance": {name: asdict(tolerance(name)) for name in sorted(set(precision.values()))},
            "max_loss": self.max_loss,
            "rows": row_ids,
            **self.metrics.facts(),
            "traced": "vision tower and connectors, at a batch of two; the decoder was written, no length of it traced",
            "vision": vars(self.vision),
            "pictures": self.pictures.facts(),
            "router": {"asked": len(self.choices), "same": sum(a == b for a, b in self.choices)},
            "scales": {
                str(m): {
                    **{phase: vars(getattr(report, phase)) for phase in ("connector", *PHASES)},
                    "fidelity": report.fidelity.facts(report.groups),
                    "answers": report.answers,
                    "same_answers": report.answers - len(report.other_answers),
                    "answer_tokens": report.tokens,
                    "accuracy": {"torch": _mean(report.torch_scores), "bundle": _mean(report.file_scores)},
                    "points_lost": asdict(report.lost),
                    "prompt_lengths": sorted(report.prompt_lengths),
                    "kv_offsets": sorted(report.kv_offsets),
                }
                for m, report in self.scales.items()
                if report.answers  # none where a connector is another scale's
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


def _too_far(phase: str, precision: str, difference: Difference, *behind: str) -> list[str]:
    allowed = max(tolerance(name).relative for name in (precision, *behind))
    if difference.max_relative <= allowed:
        return []
    return [
        f"{phase} in {precision} differs by {difference.max_relative:.2g} of its largest value (allowed {allowed:g})"
    ]


def _mean(scores: Sequence[float]) -> float:
    return float(np.mean(scores))
