"""What each scale of a bundle costs on this device, stage by stage, through the runtime that an application uses.

Letters: K scales of the bundle, ascending; R rounds. In a round every scale answers once, in an order that changes, and
looks at the picture anew: what slows the machine down for a while then slows all scales, and no answer finds the
cache of another. Stop tokens are ignored, so that every answer has the same length.

In the same rounds every part of a question is measured by itself (`parts.py`). What a scale costs is composed of these,
for any picture and whatever is in the caches; the whole questions say by how much that is wrong.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime import Answer, Runtime
from export.runtime.backends.cuda import Cuda
from export.runtime.backends.onnx import TENSORRT, Device
from export.runtime.errors import MvlmError
from export.runtime.image import Picture
from export.runtime.machine import resident_mib
from export.runtime.manifest import Manifest
from export.runtime.request import Request
from export.runtime.routing.parts import Parts, Work
from export.runtime.views.cutting import Whole

from .parts import PartSamples, PartsMeter
from .power import PowerMeter

Floats = NDArray[np.float64]
Asked = tuple[Answer, float, float]  # and when that began and ended, in seconds
# A saving below this share of an answer's time is taken for none.
WORTH = 0.02
# How sure the floor must be that a scale is dearer than the cheapest.
_CONFIDENCE = 0.95
_CLEAR = Path("/proc/self/clear_refs")
# In the order in which they happen; `features` is the picture's part and the question's, and like `router` it is there
# only where a scale is chosen.
STAGES = ("image", "vision", "features", "router", "connector", "prefill")
LOOK = ("image", "vision")
# The same where a scale may show tiles: the overview first.
STAGES_OF_TILES = (
    "image", "vision_overview", "features", "router", "image_tiles", "vision_tiles", "connector", "prefill",
)  # fmt: skip
LOOK_OF_TILES = ("image", "vision_overview")
_CHOOSING = ("features", "router")


@dataclass(frozen=True)
class Plan:
    """What is asked, and how often. `answer_tokens` is at least 2: one comes out of the prefill."""

    picture: Picture
    question: str
    answer_tokens: int
    rounds: int
    warmup_rounds: int


@dataclass
class Samples:
    """Milliseconds as they were measured: by scale and stage, one for each round.

    `whole` is what a question took from outside, by scale; `chosen` the same where a scale was chosen, and which.
    `many_views`: whether the model has views beside the overview. `around` are the positions beside the picture's.
    """

    scales: tuple[Any, ...]
    many_views: bool = False
    around: int = 0
    stages: dict[Any, dict[str, list[float]]] = field(init=False)
    whole: dict[Any, list[float]] = field(default_factory=lambda: defaultdict(list))
    chosen: list[tuple[Any, float]] = field(default_factory=list)
    parts: PartSamples = field(default_factory=PartSamples)
    work: dict[Any, Work] = field(default_factory=dict)
    watts: dict[Any, list[float]] = field(default_factory=lambda: defaultdict(list))
    peak_mib: dict[Any, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stages = {scale: defaultdict(list) for scale in self.scales}

    @property
    def look(self) -> tuple[str, ...]:
        """The stages of looking at a picture."""
        return LOOK_OF_TILES if self.many_views else LOOK

    @property
    def order(self) -> tuple[str, ...]:
        """All stages in the order in which they happen."""
        return STAGES_OF_TILES if self.many_views else STAGES

    @property
    def reading(self) -> tuple[str, ...]:
        """The stages between looking and the first token that are there whoever chose the scale."""
        return tuple(stage for stage in self.order if stage not in (*self.look, *_CHOOSING))

    def medians(self) -> Parts:
        """The parts that costs are composed of."""
        return self.parts.parts(lambda ms: float(np.median(ms)))

    def composed(self, answer_tokens: int) -> Floats:
        """A question about a new picture and its answer, without the router, from its parts: (K,)."""
        parts = self.medians()
        return np.array([parts.ms(self.work[m], answer_tokens) for m in self.scales])

    def looks(self) -> Floats:
        """Every look at a picture, whichever scale then answered: (R * K,)."""
        return np.concatenate([np.sum([at[stage] for stage in self.look], axis=0) for at in self.stages.values()])

    def first_token(self, scale: Any) -> Floats:
        """From a look to the first token: (R,)."""
        found: Floats = np.sum([self.stages[scale][stage] for stage in self.reading], axis=0)
        return found

    def totals(self, answer_tokens: int) -> Floats:
        """A question about a new picture and its answer, without the router: (R, K).

        Looking is the same work whatever the scale, and counts by the median of all looks; the noise of it would
        hide what the scales differ in.
        """
        columns = [
            self.first_token(scale) + (answer_tokens - 1) * np.array(at["token"]) for scale, at in self.stages.items()
        ]
        return np.stack(columns, axis=1) + np.median(self.looks())


def open_runtime(manifest: Manifest, device: Device) -> Runtime:
    """The bundle as an application opens it, but that no token ends an answer and the router keeps its own costs.

    Raises `MvlmError` for one whose scales are of clips alone, which are not measured yet.
    """
    if (many := [scale for scale in manifest.scales if isinstance(scale, str)]) and not _has_tiles(manifest):
        raise MvlmError(
            f"{manifest.folder} shows several frames of clips ({many[0]}), and bench measures pictures so far: the"
            " router keeps its costs in tokens",
            code="unsupported",
        )
    return Runtime(replace(manifest, stop_ids=frozenset()), device)


def _has_tiles(manifest: Manifest) -> bool:
    return manifest.views is not None and not isinstance(manifest.views.rule, Whole)


def answers(manifest: Manifest, plan: Plan) -> int:
    """How many steps `measure` takes: answers, and the parts of each round."""
    return (plan.rounds + plan.warmup_rounds) * (len(manifest.scales) + (manifest.router is not None) + 1)


def measure(runtime: Runtime, plan: Plan, power: PowerMeter, progress: Callable[[int], None]) -> Samples:
    """Ask at every scale in every round, and measure the parts; `progress` counts `answers`.

    Raises `MvlmError` for a question that cannot be asked or a picture that cannot be read.
    """
    scales, many_views = (
        runtime.router.offered if runtime.router else runtime.manifest.scales,
        runtime.manifest.many_views,
    )
    request = Request(plan.question, scales[-1], max_new_tokens=plan.answer_tokens)
    runtime.require_answerable(request)
    view = runtime.look(plan.picture)
    for scale in scales:
        runtime.require_answerable(replace(request, scale=scale), view)
    meter = PartsMeter(runtime, request, plan.picture, view)
    samples = Samples(scales, many_views, meter.around, work={m: meter.work(m) for m in scales})
    samples.parts.views_at_once = meter.views_at_once
    order, warming = np.random.default_rng(0), Samples(scales, many_views)
    for i in range(-plan.warmup_rounds, plan.rounds):
        _round(runtime, plan, power, progress, samples if i >= 0 else warming, order)
        meter.round(runtime.look(plan.picture), (samples if i >= 0 else warming).parts, order)
        progress(1)
    return samples


def _round(
    runtime: Runtime, plan: Plan, power: PowerMeter, progress: Callable[[int], None], samples: Samples,
    order: np.random.Generator,
) -> None:  # fmt: skip
    """Whole questions: one at each scale, and one where the router chooses."""
    for m in (samples.scales[at] for at in order.permutation(len(samples.scales))):
        (answer, started, ended), peak_mib = _with_peak(lambda m=m: _ask(runtime, plan, m))  # type: ignore[misc]
        samples.whole[m].append(1000 * (ended - started))
        _keep(samples, m, answer, peak_mib, power.watts(started, ended))
        progress(1)
    if runtime.manifest.router is not None:
        answer, started, ended = _ask(runtime, plan, "auto")
        if answer.escalated is None:
            samples.chosen.append((answer.scale, 1000 * (ended - started)))
        progress(1)


def _ask(runtime: Runtime, plan: Plan, scale: Any) -> Asked:
    started = time.perf_counter()
    answer = runtime.ask(plan.picture, plan.question, scale, max_new_tokens=plan.answer_tokens)
    return answer, started, time.perf_counter()


def _keep(samples: Samples, m: Any, answer: Answer, peak_mib: float | None, watts: float | None) -> None:
    at = samples.stages[m]
    for stage in (*samples.look, *samples.reading):
        at[stage].append(answer.timings.get(f"{stage}_ms", 0.0))  # where there are no tiles
    at["token"].append(answer.timings["decode_ms"] / (len(answer.token_ids) - 1))
    if peak_mib is not None:
        samples.peak_mib[m] = max(samples.peak_mib.get(m, 0.0), peak_mib)
    if watts is not None:
        samples.watts[m].append(watts)


def _with_peak(work: Callable[[], Asked]) -> tuple[Asked, float | None]:
    """What `work` returns, and the most memory that this process held meanwhile, in MiB; Linux alone tells."""
    try:
        _CLEAR.write_text("5")  # lets the peak begin anew (kernel documentation, filesystems/proc)
    except OSError:
        return work(), None
    asked = work()
    return asked, resident_mib("VmHWM")


def gpu_memory(provider: str) -> dict[str, Any]:
    """What is taken of the GPU's memory while the engines are open, by whomever; nothing where there is none."""
    if provider not in TENSORRT:
        return {}
    cuda = Cuda()
    free, whole = cuda.free_bytes()
    return {"gpu": cuda.name, "gpu_used": (whole - free) / 2**20}


def percentiles(values: Sequence[float] | Floats) -> dict[str, float]:
    """Best, median, 90th and 99th percentile."""
    names = {"best": 0, "p50": 50, "p90": 90, "p99": 99}
    found = np.percentile(values, list(names.values()))
    return {name: round(float(value), 4) for name, value in zip(names, found, strict=True)}


def floor_index(totals: Floats) -> int:
    """The last scale of those, from the cheapest on, that cost no more than the cheapest: (R, K) -> an index.

    A scale costs more when half of its rounds are dearer than the cheapest scale's by more than `WORTH`, at the
    confidence of a sign test; what cannot be told apart is the same.
    """
    gaps = totals / totals[:, :1] - 1  # (R, K), each against the cheapest scale of the same round
    sure = _rounds_for_sure(len(totals))
    dearer = (gaps > WORTH).sum(axis=0) >= sure  # (K,)
    return int(np.argmax(dearer)) - 1 if dearer.any() else len(dearer) - 1


def _rounds_for_sure(rounds: int) -> int:
    """How many of so many rounds must agree, that a coin would do it rarely enough; one more than all if none can."""
    for agreeing in range(rounds + 1):
        by_chance = sum(math.comb(rounds, k) for k in range(agreeing, rounds + 1)) / 2**rounds
        if by_chance <= 1 - _CONFIDENCE:
            return agreeing
    return rounds + 1


def costs_of(composed: Floats, floor: int, router_ms: float) -> Floats:
    """Milliseconds, the same up to the floor and never falling above it: (K,) -> (K,)."""
    costs = composed.copy()
    costs[: floor + 1] = costs[: floor + 1].mean()
    return np.maximum.accumulate(costs) + router_ms
