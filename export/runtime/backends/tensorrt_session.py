"""Runs engines that `mvlm build` made, behind the same small interface as sessions.py: numpy in, numpy out.

Letters: S positions of a step, D width, V vocabulary, K key-value heads, d head size.
Keys and values stay on the device. An engine has one execution context, which one thread uses at a time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.errors import MvlmError
from export.runtime.manifest import DecoderGraph, Manifest

from .cuda import Buffer, Cuda
from .engine_files import EngineSet, Fingerprint, find_engines
from .onnx import Device, step_inputs
from .tensorrt_api import Tensorrt

Array = NDArray[Any]


class Engines:
    """A bundle's engines on this device."""

    def __init__(self, manifest: Manifest, provider: str) -> None:
        """Raises `MvlmError`: no TensorRT, no GPU, no engines, or engines of another TensorRT, GPU or bundle."""
        self._api, self._cuda = Tensorrt(provider), Cuda()
        self.manifest = manifest
        self.set: EngineSet = find_engines(manifest.folder, here(self._api, self._cuda, manifest.sha256))
        self.views_at_once = self.set.views_at_once

    # The router's graph is no engine: numpy walks it.
    for_small: Device | None = None

    def session(self, file: str, *, small: bool = False) -> TensorrtSession:
        """The engine of one graph of the bundle, vision or a connector; `small` is of no matter here."""
        return TensorrtSession(self._api, self._cuda, self.set.path(file), for_many=self.views_at_once > 1)

    def decoder(self) -> TensorrtDecoder:
        facts = self.manifest.decoder
        return TensorrtDecoder(TensorrtSession(self._api, self._cuda, self.set.path(facts.graph.file)), facts, self.set)


def here(api: Tensorrt, cuda: Cuda, bundle_sha256: str) -> Fingerprint:
    """What an engine that is built or opened now depends on; options are the builder's to add."""
    return Fingerprint(api.product, api.version, cuda.capability, cuda.name, cuda.driver, bundle_sha256, {})


class TensorrtSession:
    """One engine and its context."""

    def __init__(self, api: Tensorrt, cuda: Cuda, path: Path, *, for_many: bool = False) -> None:
        """`for_many`: `run` uses the first profile for a batch of one, and the second for more."""
        self._for_many = for_many
        self.api, self.cuda, self.path = api, cuda, path
        self.lock = threading.Lock()
        self._engine = api.read_engine(path)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise MvlmError(f"{path} cannot be run ({api.said()}): free memory on the device", code="no-memory")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.dtypes = {name: api.dtype(self._engine, name) for name in names}
        mode = api.trt.TensorIOMode.INPUT
        self.inputs = {name for name in names if self._engine.get_tensor_mode(name) == mode}
        self._profile = 0
        self._buffers: dict[str, Buffer] = {}

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """As onnxruntime's: the outputs that are named, for the inputs that are given."""
        with self.lock:
            if self._for_many:
                self.use_profile(int(any(len(value) > 1 for value in feeds.values())))
            for name, value in feeds.items():
                self.feed(name, value)
            self.ready_outputs({})
            self.execute()
            return [self.fetch(name) for name in names]

    def use_profile(self, index: int) -> None:
        if index != self._profile:
            self._require(self._context.set_optimization_profile_async(index, self.cuda.stream), "change its profile")
            self._profile = index

    def feed(self, name: str, value: Array) -> None:
        """Copy an input to the device. Integers become what the engine holds them as, which was 32 bits before 10."""
        kind = self.dtypes[name]
        if value.dtype != kind and {value.dtype.kind, kind.kind} != {"i"}:
            raise MvlmError(f"{self.path} takes {name} as {kind}, and it was given as {value.dtype}: build again")
        value = np.ascontiguousarray(value, kind)
        address = self._room(name, value.nbytes).address
        self.cuda.send(value, address)
        self.cuda.wait()  # `value` may not outlive this call
        self.bind(name, address, value.shape)

    def bind(self, name: str, address: int, shape: tuple[int, ...] | None = None) -> None:
        """Read an input, or write an output, at an address of the device."""
        if shape is not None:
            self._require(self._context.set_input_shape(name, shape), f"take {name} as {shape}")
        self._require(self._context.set_tensor_address(name, address), f"place {name}")

    def ready_outputs(self, placed: Mapping[str, int]) -> None:
        """Place every output: where the caller wants it, or in a buffer of its own."""
        for name in self.dtypes.keys() - self.inputs:
            address = placed.get(name) or self._room(name, self._size(name)).address
            self.bind(name, address)

    def execute(self) -> None:
        self._require(self._context.execute_async_v3(self.cuda.stream), "run")

    def fetch(self, name: str) -> Array:
        array = np.empty(self._shape(name), self.dtypes[name])
        self.cuda.fetch(array, self._buffers[name].address)
        return array

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._context.get_tensor_shape(name))

    def _size(self, name: str) -> int:
        return math.prod(self._shape(name)) * self.dtypes[name].itemsize

    def _room(self, name: str, size: int) -> Buffer:
        """A buffer of at least this size, kept from one run to the next."""
        kept = self._buffers.get(name)
        if kept is None or kept.size < size:
            self._buffers[name] = kept = self.cuda.allocate(size)
        return kept

    def _require(self, done: bool, what: str) -> None:
        if not done:
            reason = self.api.said()
            raise MvlmError(f"{self.path} cannot {what} ({reason}): run `mvlm build` again", code="engine-failed")


class TensorrtDecoder:
    """The language model, one step at a time; as sessions.Decoder."""

    takes_several = False  # an engine's profiles fix how many conversations it reads on: one
    reads_by_row = False  # never tried: a prompt is read whole

    def __init__(self, session: TensorrtSession, facts: DecoderGraph, engines: EngineSet) -> None:
        self.session, self.facts, self._engines = session, facts, engines

    def cache(self, positions: int) -> TensorrtCache:
        return TensorrtCache(self, positions)

    def pieces(self, inputs_embeds: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """A prompt (S, D) as it is read: whole."""
        return [inputs_embeds]

    def step(self, inputs_embeds: NDArray[np.float32], cache: TensorrtCache) -> NDArray[np.float32]:
        """Read S more positions after those in the cache: (S, D) -> logits (V,) of the last one."""
        session, facts, steps = self.session, self.facts, len(inputs_embeds)
        profile = self._engines.profile_for(steps)
        feeds = {"inputs_embeds": inputs_embeds[None]} | step_inputs(facts, [cache.used], steps)  # (1, S, D), …
        with session.lock:
            session.use_profile(profile)
            for role, name in facts.graph.inputs.items():
                session.feed(name, feeds[role])
            session.ready_outputs(cache.bind(session, steps))
            session.execute()
            logits = session.fetch(facts.graph.outputs["logits"])  # (1, V)
            cache.advance(steps)
        return logits[0].astype(np.float32)


class TensorrtCache:
    """Keys and values of one conversation on the device; as sessions.Cache.

    "scatter": one buffer a tensor, read and written by each step. "concat": two, of which a step reads one and writes
    the other, one longer.
    """

    def __init__(self, decoder: TensorrtDecoder, positions: int) -> None:
        self._facts = facts = decoder.facts
        self._cuda = decoder.session.cuda
        self._itemsize = np.dtype(facts.cache_dtype).itemsize
        self.positions = facts.positions if facts.cache == "scatter" else positions
        self.used = 0
        self._sets = [self._allocate() for _ in range(1 if facts.cache == "scatter" else 2)]

    def bind(self, session: TensorrtSession, steps: int) -> dict[str, int]:
        """Bind what the step reads, and return where it writes."""
        facts = self._facts
        if self.used + steps > self.positions:
            raise MvlmError(f"the cache holds {self.positions} positions, and {self.used + steps} are needed")
        shape = (1, facts.kv_heads, self._length(self.used), facts.head_dim)
        for name, buffer in zip(facts.past, self._sets[0], strict=True):
            session.bind(name, buffer.address, shape)
        return {name: buffer.address for name, buffer in zip(facts.present, self._sets[-1], strict=True)}

    def advance(self, steps: int) -> None:
        self.used += steps
        self._sets.reverse()

    def rewind(self, used: int) -> None:
        """Forget all but the first `used` positions: what stands there depends on nothing behind it."""
        assert used <= self.used
        if used < self.used and len(self._sets) == 2:  # rows have the length of what is used, so they move together
            self._copy(self._sets[0], self._sets[1], self.used, used, used)
            self._sets.reverse()
        self.used = used

    def copy(self, other: TensorrtCache, used: int) -> None:
        """Start with a copy of the first `used` positions of another conversation."""
        assert used <= min(other.used, self.positions)
        self._copy(other._sets[0], self._sets[0], other._length(other.used), self._length(used), used)
        self.used = used

    def _copy(self, source: list[Buffer], to: list[Buffer], length: int, to_length: int, used: int) -> None:
        """Copy the first `used` positions of every head, between buffers whose rows have other lengths."""
        position = self._facts.head_dim * self._itemsize
        for a, b in zip(source, to, strict=True):
            rows = (b.address, to_length * position, a.address, length * position, used * position)
            self._cuda.copy_rows(*rows, self._facts.kv_heads)
        self._cuda.wait()

    def _length(self, used: int) -> int:
        return self.positions if self._facts.cache == "scatter" else used

    def _allocate(self) -> list[Buffer]:
        facts = self._facts
        size = facts.kv_heads * self.positions * facts.head_dim * self._itemsize
        buffers = [self._cuda.allocate(size) for _ in facts.past]
        for buffer in buffers:
            self._cuda.clear(buffer)  # hidden positions are multiplied by nought, which is no number for a stray NaN
        return buffers
