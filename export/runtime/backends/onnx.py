"""Opens a bundle's graphs on the provider that was asked for, or raises. The only place that knows onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.errors import MvlmError
from export.runtime.manifest import DecoderGraph

Array = NDArray[Any]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_EXTRAS = {"cpu": "cpu", "cuda": "gpu"}
# Those whose engines `mvlm build` makes; tensorrt_session.py runs them.
TENSORRT = ("tensorrt", "tensorrt-rtx")
_ERRORS_ONLY = 3
# How long a session's threads wait for work before they sleep. Left to itself onnxruntime lets them wait for a thousand
# times as long, and the threads of the graph that ran before then hold the cores of the one that runs now.
_SPIN_US = "200"
# A long prompt is read in pieces of at most so many positions on a CPU: what one piece attends to ends with it, so that
# less is multiplied and masked away, and the next layer finds it in the cache of the processor.
_PIECE = 256


@dataclass(frozen=True)
class Device:
    """Where graphs run: a provider, and how many threads each large graph may use (None: as many as cores)."""

    provider: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        known = [*_PROVIDERS, *TENSORRT]
        if self.provider not in known:
            raise MvlmError(
                f"there is no provider {self.provider!r}: name one of {', '.join(known)}", code="bad-provider"
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
        raise MvlmError(
            f'this onnxruntime has no {provider}: pip install "mvlm[{_EXTRAS[device.provider]}]"', code="bad-provider"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    if device.threads is not None:
        options.intra_op_num_threads = device.threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # onnxruntime's errors share no base class
        reason = str(error).split("\n")[0][:200]
        raise MvlmError(f"{path} cannot be opened ({reason}): export again, or upgrade onnxruntime") from None
    if provider not in session.get_providers():  # it falls back to the CPU when a library of CUDA is missing
        raise MvlmError(
            f"{provider} does not start on this machine: install the libraries that onnxruntime names in its log",
            code="bad-provider",
        )
    return session


def run_session(session: Any, outputs: Sequence[str], feeds: dict[str, Array]) -> list[Array]:
    """Run a graph once. Raises `MvlmError` when the engine fails."""
    with engine_errors():
        return session.run(list(outputs), feeds)


@contextmanager
def engine_errors() -> Iterator[None]:
    """Whatever an engine raises, as the one class of errors that callers know."""
    try:
        yield
    except MvlmError:
        raise
    except Exception as error:  # onnxruntime's errors share no base class
        reason = str(error).split("\n")[0][:200]
        raise MvlmError(f"the engine failed ({reason}): look at free memory", code="engine-failed") from None


class Cache:
    """Keys and values of up to `positions` positions of one conversation."""

    def __init__(self, decoder: Decoder, positions: int) -> None:
        facts = self._facts = decoder.facts
        self.form = facts.cache
        self.positions = facts.positions if self.form == "scatter" else positions
        self.used = 0
        self._memory = decoder.device.provider  # where onnxruntime keeps what stays between steps
        self.bindings = {phase: session.io_binding() for phase, session in decoder.sessions.items()}
        self._outputs: list[Any] = []
        # Where a step writes into buffers that stand, none has to be asked for afterwards, logits (1, V) included.
        stands = self._memory == "cpu" and self.form != "concat"
        self.logits = np.empty((1, decoder.vocabulary), np.float32) if stands else None
        shape = (1, facts.kv_heads, 0 if self.form == "concat" else self.positions, facts.head_dim)
        self._bind([np.zeros(shape, facts.cache_dtype) for _ in facts.past])

    def take(self, outputs: list[Any]) -> None:
        """Let what a step put out be what the next one reads, where that is not one buffer."""
        if self.form == "concat":
            self._outputs = outputs
            self._offer(outputs)

    def rewind(self, used: int) -> None:
        """Forget all but the first `used` positions: what stands there depends on nothing behind it."""
        assert used <= self.used
        if self.form == "concat" and used < self.used:
            self._bind([values[:, :, :used] for values in self.values()])
        self.used = used

    def copy(self, other: Cache, used: int) -> None:
        """Start with the first `used` positions of another conversation."""
        assert used <= min(other.used, self.positions)
        if self.form == "concat":
            self._bind([values[:, :, :used] for values in other.values()])
        elif self._memory != "cpu":
            whole = [np.zeros_like(values) for values in self._buffers]
            for mine, theirs in zip(whole, other.values(), strict=True):
                mine[:, :, :used] = theirs[:, :, :used]
            self._bind(whole)
        else:
            for mine, theirs in zip(self.values(), other.values(), strict=True):
                mine[:, :, :used] = theirs[:, :, :used]
        self.used = used

    def values(self) -> list[Array]:
        """Keys, then values, of each layer: (1, kv_heads, positions, head_dim) each."""
        held = self._held if self._memory != "cpu" else self._outputs
        return [value.numpy() for value in held] if held else self._buffers

    def _bind(self, buffers: list[Array]) -> None:
        from onnxruntime import OrtValue

        self._logits = None if self.logits is None else OrtValue.ortvalue_from_numpy(self.logits)
        self._buffers = [np.ascontiguousarray(values) for values in buffers]
        self._outputs = []
        # On the CPU each is the array itself, not a copy.
        self._offer([OrtValue.ortvalue_from_numpy(values, self._memory) for values in self._buffers])

    def _offer(self, held: list[Any]) -> None:
        """Bind what the next step of either phase reads, and where it writes."""
        self._held = held
        for binding in self.bindings.values():
            binding.clear_binding_outputs()
            name = self._facts.graph.outputs["logits"]
            if self._logits is None:
                binding.bind_output(name)
            else:
                binding.bind_ortvalue_output(name, self._logits)
            for past, present, value in zip(self._facts.past, self._facts.present, held, strict=True):
                binding.bind_ortvalue_input(past, value)
                if self.form == "concat":
                    binding.bind_output(present, self._memory)
                else:
                    binding.bind_ortvalue_output(present, value)


class Decoder:
    """The language model, one step at a time: a prompt of any length, or one token."""

    def __init__(self, path: Path, facts: DecoderGraph, device: Device) -> None:
        self.facts = facts
        self.device = device
        decode = open_session(path, device)
        prefill = open_session(path.with_name(facts.prefill.file), device) if facts.prefill else None
        self.sessions = {"decode": decode} | ({"prefill": prefill} if prefill else {})
        by_name = {output.name: output.shape for output in decode.get_outputs()}
        rows, self.vocabulary = by_name[facts.graph.outputs["logits"]]
        # Files of an older mvlm, and of other dialects, hold one conversation; other memory was never tried.
        self.takes_several = not isinstance(rows, int) and device.provider == "cpu"
        # Whether a prompt in pieces of any size gives what it gives whole: what reads one position looks at no other.
        of_prompts = {output.name: output.shape for output in self.sessions.get("prefill", decode).get_outputs()}
        self.reads_by_row = not isinstance(of_prompts[facts.graph.outputs["logits"]][0], int)

    def cache(self, positions: int) -> Cache:
        """An empty cache of this decoder's form."""
        return Cache(self, positions)

    def step(self, inputs_embeds: NDArray[np.float32], cache: Cache) -> NDArray[np.float32]:
        """Read S more positions after those in the cache: (S, D) -> logits (V,) of the last one."""
        for piece in self.pieces(inputs_embeds):
            logits = self._read(piece, cache)
        return logits

    def pieces(self, inputs_embeds: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """A prompt (S, D) as it is read: whole, or in pieces of one size where that is faster."""
        if len(inputs_embeds) <= _PIECE or self.facts.cache != "in place" or self.device.provider != "cpu":
            return [inputs_embeds]
        return np.array_split(inputs_embeds, -(-len(inputs_embeds) // _PIECE))

    def _read(self, inputs_embeds: NDArray[np.float32], cache: Cache) -> NDArray[np.float32]:
        steps = len(inputs_embeds)
        phase = "prefill" if steps > 1 and "prefill" in self.sessions else "decode"
        binding = cache.bindings[phase]
        feeds = {"inputs_embeds": np.ascontiguousarray(inputs_embeds[None])}  # (1, S, D)
        feeds |= step_inputs(self.facts, [cache.used], steps)
        with engine_errors():
            for role, name in self.facts.graph.inputs.items():
                binding.bind_cpu_input(name, feeds[role])
            self.sessions[phase].run_with_iobinding(binding)
        cache.used += steps
        if cache.logits is not None:
            return cache.logits[0].copy()  # (V,)
        outputs = binding.get_outputs()
        cache.take(outputs[1:])
        return outputs[0].numpy()[0]  # (V,)


def step_inputs(facts: DecoderGraph, used: Sequence[int], steps: int) -> dict[str, Array]:
    """What a decoder's dialect asks for besides embeddings, for S = `steps` positions behind those that are in `used`.

    That holds one number for each of the B conversations that are read on together; but in one cache they have
    different lengths only where it is "in place". The mask says, for each position of the step, which of the T
    positions of the cache it sees: itself and all before.
    """
    before = np.asarray(used)  # (B,)
    total = int(before.max()) + steps
    positions = before[:, None] + np.arange(steps)  # (B, S)
    inputs: dict[str, Array] = {"position_ids": positions}
    if facts.cache == "in place":
        inputs["seqlens_k"] = (before + steps - 1).astype(np.int32)  # (B,)
        inputs["total_sequence_length"] = np.asarray(total, np.int32)
        return inputs
    in_sight = facts.positions if facts.cache == "scatter" else total
    inputs["attention_mask"] = (np.arange(in_sight) <= positions[..., None])[:, None]  # (B, 1, S, T)
    inputs["write_indices"] = before
    return inputs
