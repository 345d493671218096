"""Opens a bundle's graphs on the provider that was asked for, or raises. The only place that knows onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MvlmError
from .manifest import DecoderGraph

Array = NDArray[Any]

_PROVIDERS = {"cpu": "CPUExecutionProvider"}
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class Device:
    """Where graphs run: a provider, and how many threads each large graph may use (None: as many as cores)."""

    provider: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.provider not in _PROVIDERS:
            raise MvlmError(
                f"there is no provider {self.provider!r}: name one of {', '.join(_PROVIDERS)}", code="bad-provider"
            )
        if self.threads is not None and self.threads < 1:
            raise MvlmError(f"{self.threads} threads cannot run anything: give at least 1")


def open_session(path: Path, device: Device) -> Any:
    """An onnxruntime session of one graph. Weights are read from the files beside it.

    Raises `MvlmError` when onnxruntime is not installed, lacks the provider, or cannot open the graph.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise MvlmError('onnxruntime is not installed: pip install "mvlm[cpu]"', code="no-onnxruntime") from None
    provider = _PROVIDERS[device.provider]
    if provider not in onnxruntime.get_available_providers():
        raise MvlmError(f"this onnxruntime has no {provider}: install one that does", code="bad-provider")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if device.threads is not None:
        options.intra_op_num_threads = device.threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # onnxruntime's errors share no base class
        reason = str(error).split("\n")[0][:200]
        raise MvlmError(f"{path} cannot be opened ({reason}): export again, or upgrade onnxruntime") from None


class Cache:
    """Keys and values of up to `positions` positions of one conversation, written in place by each step."""

    def __init__(self, decoder: Decoder, positions: int) -> None:
        from onnxruntime import OrtValue

        facts = decoder.facts
        shape = (1, facts.kv_heads, positions, facts.head_dim)
        self.positions = positions
        self.used = 0
        self.binding = decoder.session.io_binding()
        self.binding.bind_output(facts.graph.outputs["logits"])
        for past, present in zip(facts.past, facts.present, strict=True):
            buffer = OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
            self.binding.bind_ortvalue_input(past, buffer)
            self.binding.bind_ortvalue_output(present, buffer)


class Decoder:
    """The language model, one step at a time: a prompt of any length, or one token."""

    def __init__(self, path: Path, facts: DecoderGraph, device: Device) -> None:
        self.facts = facts
        self.session = open_session(path, device)

    def step(self, inputs_embeds: NDArray[np.float32], cache: Cache) -> NDArray[np.float32]:
        """Read S more positions after those in the cache: (S, D) -> logits (V,) of the last one."""
        names = self.facts.graph.inputs
        total = cache.used + len(inputs_embeds)
        feeds = {
            names["inputs_embeds"]: np.ascontiguousarray(inputs_embeds[None]),  # (1, S, D)
            names["seqlens_k"]: np.asarray([total - 1], np.int32),
            names["total_sequence_length"]: np.asarray(total, np.int32),
        }
        for name, value in feeds.items():
            cache.binding.bind_cpu_input(name, value)
        self.session.run_with_iobinding(cache.binding)
        cache.used = total
        return cache.binding.get_outputs()[0].numpy()[0]  # (V,)
