"""A bench as people and the router read it: bench.json, a table, a plot, and one sentence to act on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.runtime.artefact import describe
from export.runtime.backends.onnx import Device
from export.runtime.machine import machine
from export.runtime.manifest import Manifest
from export.runtime.routing.costs import NAME
from export.runtime.views.scale import ScaleWord

from .bench import STAGES, STAGES_OF_TILES, Floats, Plan, Samples, costs_of, floor_index, percentiles
from .power import PowerMeter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = dict(
    zip(
        [*STAGES, "answer", *(stage for stage in STAGES_OF_TILES if stage not in STAGES)],
        ["#c9ced6", "#2b6cb0", "#8a8f98", "#e0a100", "#2f855a", "#c8102e", "#f3a6b2", "#2b6cb0", "#a3a9b3", "#6ba3dc"],
        strict=True,
    )
)
_MUCH = 0.5


@dataclass(frozen=True)
class Check:
    """Milliseconds of a question at a scale, or at what the router chose (`auto`): composed, and asked whole."""

    scale: str
    composed: float
    whole: float

    @property
    def error(self) -> float:
        """Of what was composed, as a share of the whole."""
        return self.composed / self.whole - 1


@dataclass(frozen=True)
class Bench:
    """Samples with what follows from them."""

    plan: Plan
    samples: Samples
    floor: ScaleWord
    costs: dict[Any, float]
    router_ms: float  # the router and the features of picture and question; 0 without a router
    checks: tuple[Check, ...]

    @property
    def scales(self) -> tuple[Any, ...]:
        return self.samples.scales

    @property
    def stages(self) -> tuple[str, ...]:
        """In the order in which they happen, the answer's further tokens last."""
        return *self.samples.order, "answer"

    @property
    def below(self) -> list[Any]:
        """The scales that save nothing against the floor."""
        return list(self.scales[: self.scales.index(self.floor)])

    def stage_ms(self, m: ScaleWord) -> dict[str, float]:
        """Medians in the order in which they happen, the answer's further tokens last; looking is the same for all."""
        at = {stage: float(np.median(values)) for stage, values in self.samples.stages[m].items()}
        shared = {
            stage: float(np.median([at[stage] for at in self.samples.stages.values()])) for stage in self.samples.look
        }
        chosen = self.choosing_ms()
        shown = {stage: (at | shared | chosen).get(stage, 0.0) for stage in self.samples.order}
        return shown | {"answer": at["token"] * (self.plan.answer_tokens - 1)}

    def choosing_ms(self) -> dict[str, float]:
        """Medians of the stages that are there only where a scale is chosen."""
        parts = self.samples.medians()
        return {"features": parts.picture + parts.question, "router": parts.router} if self.router_ms else {}


def conclude(plan: Plan, samples: Samples) -> Bench:
    """Find the floor and the cost of each scale."""
    floor = floor_index(samples.totals(plan.answer_tokens))
    router_ms = samples.medians().choosing_ms(picture_seen=False)
    composed = samples.composed(plan.answer_tokens)
    costs = [round(float(cost), 4) for cost in costs_of(composed, floor, router_ms)]
    return Bench(
        plan, samples, samples.scales[floor], dict(zip(samples.scales, costs, strict=True)), router_ms,
        tuple(_checks(samples, composed, router_ms)),
    )  # fmt: skip


def _checks(samples: Samples, composed: Floats, router_ms: float) -> Iterator[Check]:
    by_scale = dict(zip(samples.scales, composed.tolist(), strict=True))
    for m, ms in by_scale.items():
        yield Check(str(m), ms, float(np.median(samples.whole[m])))
    if samples.chosen:
        sums = [by_scale[m] + router_ms for m, _ in samples.chosen]
        yield Check("auto", float(np.median(sums)), float(np.median([whole for _, whole in samples.chosen])))


def said_of_checks(checks: Sequence[Check]) -> str:
    """By how much costs that are composed of parts miss whole questions, for a person."""
    worst = max(checks, key=lambda check: abs(check.error))
    mean = sum(abs(check.error) for check in checks) / len(checks)
    return (
        f"costs composed of their parts miss whole questions by {mean:.1%} on average, and by {worst.error:+.1%} at"
        f" most (at {worst.scale}: {worst.composed:.3g} for {worst.whole:.3g} ms)"
    )


def to_json(bench: Bench, manifest: Manifest, device: Device, memory: dict[str, Any], power: PowerMeter) -> Any:
    """What bench.json holds: every figure is milliseconds unless its name says otherwise."""
    plan, samples = bench.plan, bench.samples
    return describe(
        NAME,
        bundle_sha256=manifest.sha256,
        provider=device.provider,
        threads=device.threads,
        machine=machine(),
        question=plan.question,
        answer_tokens=plan.answer_tokens,
        rounds=plan.rounds,
        warmup_rounds=plan.warmup_rounds,
        cost_unit="ms",
        costs={str(m): cost for m, cost in bench.costs.items()},
        floor=bench.floor,
        sentence=sentence(bench),
        look_ms=percentiles(samples.looks()),
        parts=samples.parts.to_json(percentiles),
        around=samples.around,
        work={str(m): asdict(work) for m, work in samples.work.items()},
        composed=[asdict(check) | {"error": round(check.error, 4)} for check in bench.checks],
        scales={str(m): _scale_json(bench, m) for m in bench.scales},
        memory_mib=memory,
        power={"source": power.source} if power.source else {"absent": power.absent},
    )


def _scale_json(bench: Bench, m: ScaleWord) -> dict[str, Any]:
    samples = bench.samples
    at = samples.stages[m]
    facts: dict[str, Any] = {stage: percentiles(values) for stage, values in at.items()}
    facts |= {"first_token": percentiles(samples.first_token(m)), "peak_memory_mib": samples.peak_mib.get(m)}
    watts = samples.watts.get(m)
    if watts:
        facts |= {"watts": round(float(np.mean(watts)), 2)}
        facts |= {"joules_per_answer": round(float(np.mean(watts)) * bench.costs[m] / 1000, 4)}
    return facts


def sentence(bench: Bench) -> str:
    """What a person does with these figures."""
    finest, floor = bench.scales[-1], bench.floor
    if floor == finest:
        return f"Every scale takes {bench.costs[finest]:.3g} ms here: ask at {finest}, fewer tokens save nothing."
    saved = 1 - bench.costs[floor] / bench.costs[finest]
    below = bench.below
    text = f"A question takes {bench.costs[floor]:.3g} ms at {floor} and {bench.costs[finest]:.3g} ms at {finest}"
    text += f" ({saved:.0%} less)"
    if below:
        verb = "saves" if len(below) == 1 else "save"
        text += f"; {_listed(below)} {verb} nothing against {floor}, and the router never takes them for their price"
    stages = bench.stage_ms(floor)
    most = max(stages, key=stages.__getitem__)
    if stages[most] > _MUCH * sum(stages.values()):
        text += f"; {_ADVICE[most]} ({stages[most] / sum(stages.values()):.0%} of the time at {floor})"
    return text + "."


_ADVICE = {
    "image": "send smaller pictures, reading them takes most",
    "vision_overview": "look at a picture once and ask it several questions, the vision tower takes most",
    "image_tiles": "send smaller pictures, cutting them into tiles takes most",
    "vision_tiles": "a scale of fewer tiles would pay, encoding them takes most",
    "vision": "look at a picture once and ask it several questions, the vision tower takes most",
    "features": "fix a scale with --scale, the router's features take most",
    "router": "fix a scale with --scale, the router takes most",
    "connector": "a smaller connector would pay, it takes most",
    "prefill": "shorten what stands around the picture, the prompt takes most",
    "answer": "allow fewer tokens of answer, they take most",
}


def table(bench: Bench) -> list[str]:
    """One line for each scale: milliseconds of each stage (medians), what the router weighs, memory and power."""
    names = ["scale" if bench.samples.many_views else "tokens", *bench.stages, "cost", "peak MiB", "watts"]
    lines = ["".join(f"{name:>{_width(name)}}" for name in names)]
    for m in bench.scales:
        at = bench.stage_ms(m)
        peak, watts = bench.samples.peak_mib.get(m), bench.samples.watts.get(m)
        cells = [str(m), *(f"{at[stage]:.2f}" for stage in bench.stages), f"{bench.costs[m]:.2f}"]
        cells += ["-" if peak is None else f"{peak:.0f}", f"{np.mean(watts):.1f}" if watts else "-"]
        lines.append("".join(f"{cell:>{_width(name)}}" for name, cell in zip(names, cells, strict=True)))
    return lines


def _width(name: str) -> int:
    return max(10, len(name) + 2)


def draw(bench: Bench, file: Path) -> None:
    """A bar for each scale, made of its stages; the scales below the floor are pale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.6 + 0.55 * len(bench.scales)), layout="constrained", dpi=110)
    _fill(bench, figure)
    figure.savefig(file)


def _fill(bench: Bench, figure: Figure) -> None:
    from matplotlib.patches import Patch

    axes = figure.subplots()
    places = np.arange(len(bench.scales))
    left = np.zeros(len(bench.scales))
    below = bench.below
    alpha = [0.45 if m in below else 1.0 for m in bench.scales]
    for stage in bench.stages:
        width = np.array([bench.stage_ms(m)[stage] for m in bench.scales])
        bars = axes.barh(places, width, left=left, color=_COLOURS[stage], height=0.7)
        for bar, opacity in zip(bars, alpha, strict=True):
            bar.set_alpha(opacity)
        left += width
    for place, m, end in zip(places, bench.scales, left, strict=True):
        note = f"{bench.costs[m]:.3g} ms" + (f", as {bench.floor} does" if m in below else "")
        axes.annotate(note, (end, place), textcoords="offset points", xytext=(5, -3), fontsize=9)
    axes.set_yticks(places, [str(m) for m in bench.scales])
    axes.set_ylabel("scale" if bench.samples.many_views else "visual tokens")
    axes.set_xlabel(f"milliseconds from picture to an answer of {bench.plan.answer_tokens} tokens (medians)")
    axes.set_xlim(0, 1.25 * max(left.max(), max(bench.costs.values())))
    axes.spines[["top", "right"]].set_visible(False)
    named = [Patch(color=_COLOURS[stage], label=stage) for stage in bench.stages]
    figure.legend(handles=named, loc="outside upper center", ncols=len(named), frameon=False, fontsize=9)


def _listed(scales: list[Any]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, scales[:-1])), str(scales[-1])]))
