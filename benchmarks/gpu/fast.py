"""How fast a training step is at five scales: packed beside M3's own way, by attention kernel, to the end of memory."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.flops import copy_bandwidth, needed_flops
from benchmarks.gpu.record import Record, Told, wait
from benchmarks.train.step import WAYS, Built, Step, build, matrix_peak, take
from mvlm_core.train.config import TrainConfig
from mvlm_core.train.kernels import use_kernels

_TURNS = 3
# What a kernel's name says of its work; the first that fits counts.
_KINDS = {
    "attention": ("flex", "flash", "fmha", "attention", "triton_tem"),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "aten::mm"),
    "copies": ("memcpy", "memset", "copy"),
    "elementwise": ("elementwise", "vectorized", "unrolled", "triton_poi"),
    "sums": ("reduce", "norm", "softmax", "triton_red", "triton_per"),
}


def run(record: Record, told: Told) -> None:
    """Each size in turn, the small one first: of a stage cut short the small one's figures are there."""
    record.add(matrix_peak=matrix_peak(told.device), copy_bandwidth=copy_bandwidth())
    sizes = {"tiny": 2} if told.rehearse else {"0.5B": 8, "1.5B": 4}
    for number, (size, pictures) in enumerate(sizes.items(), 1):
        built, rounds = build(size, told.device, start_there=True), 1 if told.rehearse else 5
        bench = Bench(built, size, told.device, record.figures["matrix_peak"], rounds)
        until = record.began + told.seconds * number / len(sizes) - 10
        record.attempt(f"{size} ways", lambda bench=bench, n=pictures: bench.ways(n))
        record.attempt(f"{size} attention", lambda bench=bench, n=pictures: bench.kernels(n))
        record.attempt(f"{size} profile", lambda bench=bench, n=pictures: bench.shares(n))
        more = (4,) if told.rehearse else (16, 32, 48, 64, 96, 128)
        record.attempt(f"{size} batches", lambda bench=bench, more=more, until=until: bench.batches(more, until))
        if told.device == "cuda" and time.perf_counter() < until:
            record.attempt(f"{size} liger", lambda bench=bench, n=pictures: bench.liger(n))


@dataclass
class Bench:
    """One model, and what its steps are compared with: the largest matrix product's operations a second."""

    built: Built
    size: str
    device: str
    peak: float
    rounds: int

    def step(self, pictures: int) -> Step:
        return Step(self.size, pictures, _TURNS, self.device, self.built)

    def ways(self, pictures: int) -> dict[str, Any]:
        """The three ways to the same loss in turns, so that whatever slows the card slows all three."""
        step = self.step(pictures)
        rounds = [{way: measured(step, way) for way in WAYS} for _ in range(self.rounds + 1)][1:]
        found = {way: self._best(step, [taken[way] for taken in rounds], way) for way in WAYS}
        ratio = found["m3"]["seconds"] / found["packed"]["seconds"]
        facts = {"pictures": pictures, "tokens": step.tokens, "needed_flops": needed_flops(step)}
        return found | facts | {"packed_over_m3": ratio, "optimizer_seconds": optimizer_seconds(step)}

    def kernels(self, pictures: int) -> dict[str, Any]:
        """The packed step with each way to attend to what the mask shows."""
        step, found = self.step(pictures), {}
        for name in ("flex_attention", "sdpa", "eager") if self.device == "cuda" else ("sdpa", "eager"):
            step.attention = {"packed": name}
            found[name] = self._best(step, [measured(step, "packed") for _ in range(self.rounds + 1)][1:])
        return found

    def batches(self, counts: tuple[int, ...], until: float) -> dict[str, Any]:
        """Ever more pictures a step, until memory or time ends."""
        found: dict[str, Any] = {}
        for pictures in counts:
            if time.perf_counter() > until:
                return found | {"ended": f"time, at {pictures} pictures"}
            try:
                step = self.step(pictures)
                found[str(pictures)] = self._best(step, [measured(step, "packed") for _ in range(min(self.rounds, 3))])
            except torch.OutOfMemoryError:
                return found | {"ended": f"memory, at {pictures} pictures"}
            finally:
                self.built[0].zero_grad(set_to_none=True)
        return found

    def liger(self, pictures: int) -> dict[str, Any]:
        """The packed step with Liger's kernels in the language model: it stays so, and comes last."""
        kernels = TrainConfig.model_validate(_ANY_RUN | {"liger": True, "attention": {"text": "flex_attention"}})
        use_kernels(self.built[0], kernels)
        step = self.step(pictures)
        return self._best(step, [measured(step, "packed") for _ in range(self.rounds + 1)][1:])

    def shares(self, pictures: int) -> dict[str, Any]:
        """Where the time of a packed step goes, by kernel, as parts of the step; the rest, the GPU waits."""
        step = self.step(pictures)
        seconds = min(measured(step, "packed")["seconds"] for _ in range(3))
        on_cuda = self.device == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as profiled:
            take(step, "packed")
        spent: Counter[str] = Counter()
        for event in profiled.key_averages():
            spent[event.key] += event.self_device_time_total if on_cuda else event.self_cpu_time_total
        kinds: Counter[str] = Counter()
        for name, us in spent.items():
            kinds[kind_of(name)] += us
        whole = 1e6 * seconds
        return {
            "seconds": seconds, "busy": spent.total() / whole,
            "kinds": {kind: us / whole for kind, us in kinds.most_common()},
            "kernels": {name[:120]: us / whole for name, us in spent.most_common(20)},
        }  # fmt: skip

    def _best(self, step: Step, taken: list[dict[str, float]], way: str = "packed") -> dict[str, float]:
        """The fastest of some steps; of the packed one also what share of the matrix peak it reaches."""
        best = min(taken, key=lambda one: one["seconds"])
        pictures = len(step.batch["pixel_values"])
        found = best | {"pictures_per_s": pictures / best["seconds"]}
        return found | ({"share_of_peak": needed_flops(step) / best["seconds"] / self.peak} if way == "packed" else {})


# A configuration says kernels beside much else; what else it says here is not looked at.
_ANY_RUN = {
    "scales": (1,), "stages": [{"name": "any", "steps": 1}],
    "model": {"vision": {"model_type": "clip_vision_model"}, "text": {"model_type": "llama"}},
}  # fmt: skip


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, marks in _KINDS.items() if any(mark in name for mark in marks)), "the rest")


def measured(step: Step, way: str) -> dict[str, float]:
    """One step's seconds, loss, and the most memory it held; without a GPU, memory is left out."""
    if step.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, loss = take(step, way)
    peak = torch.cuda.max_memory_allocated() / 2**20 if step.device == "cuda" else 0.0
    return {"seconds": seconds, "loss": loss, "peak_mib": peak}


def optimizer_seconds(step: Step) -> float:
    """What AdamW takes beside a step, whatever the number of pictures."""
    optimizer = torch.optim.AdamW(step.model.parameters(), lr=1e-5, fused=True)
    take(step, "packed")
    optimizer.step()
    wait()
    start = time.perf_counter()
    optimizer.step()
    wait()
    return time.perf_counter() - start
