"""Keys and values of several conversations in onnxruntime: one step of the language model reads all of them on.

Letters: B conversations, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .onnx import Cache, Decoder, engine_errors, step_inputs

Array = NDArray[np.float32]


class Together:
    """Keys and values of up to `most` conversations, each of its own length, and the steps that read all on."""

    def __init__(self, decoder: Decoder, most: int, positions: int) -> None:
        self._decoder, self._most = decoder, most
        self.positions = positions
        self._buffers = self._empty(positions)
        self._logits = np.zeros((most, decoder.vocabulary), np.float32)
        self._lengths: list[int] = []
        self._binding: Any = None  # of so many conversations as there are now

    def _empty(self, positions: int) -> list[NDArray[Any]]:
        facts = self._decoder.facts
        shape = (self._most, facts.kv_heads, positions, facts.head_dim)
        # Zeros that nobody wrote to take no memory: what is unused of a long cache costs nothing.
        return [np.zeros(shape, facts.cache_dtype) for _ in facts.past]

    def grow(self, positions: int) -> None:
        """Make room for so many positions in every row."""
        longest = max(self._lengths, default=0)
        old, self._buffers = self._buffers, self._empty(positions)
        for mine, before in zip(self._buffers, old, strict=True):
            mine[: len(self._lengths), :, :longest] = before[: len(self._lengths), :, :longest]
        self.positions, self._binding = positions, None

    def give_back(self, row: int, cache: Cache) -> None:
        """Copy what was read here into the cache that a conversation came from, and forget the conversation."""
        since, used = cache.used, self._lengths[row]
        for mine, theirs in zip(self._buffers, cache.values(), strict=True):
            theirs[0, :, since:used] = mine[row, :, since:used]
        cache.used = used
        self.drop(row)

    def add(self, cache: Cache) -> None:
        """Copy a conversation into the next row."""
        row = len(self._lengths)
        for mine, theirs in zip(self._buffers, cache.values(), strict=True):
            mine[row, :, : cache.used] = theirs[0, :, : cache.used]
        self._lengths.append(cache.used)
        self._binding = None

    def drop(self, row: int) -> None:
        """Forget a conversation; the last one takes its row."""
        used = self._lengths[-1]
        for buffer in self._buffers:
            buffer[row, :, :used] = buffer[len(self._lengths) - 1, :, :used]
        self._lengths[row] = used
        self._lengths.pop()
        self._binding = None

    def step(self, inputs_embeds: Array) -> Array:
        """Read one more position in every row: (B, D) -> logits (B, V), which the next step writes over."""
        facts = self._decoder.facts
        feeds = {"inputs_embeds": np.ascontiguousarray(inputs_embeds[:, None])}  # (B, 1, D)
        feeds |= step_inputs(facts, self._lengths, steps=1)
        with engine_errors():
            self._binding = self._binding or self._bound()
            for role, name in facts.graph.inputs.items():
                self._binding.bind_cpu_input(name, feeds[role])
            self._decoder.sessions["decode"].run_with_iobinding(self._binding)
        self._lengths = [used + 1 for used in self._lengths]
        return self._logits[: len(self._lengths)]

    def _bound(self) -> Any:
        """A binding to the first rows: they lie in one piece, so nothing is copied."""
        from onnxruntime import OrtValue

        facts, rows = self._decoder.facts, len(self._lengths)
        binding = self._decoder.sessions["decode"].io_binding()
        binding.bind_ortvalue_output(facts.graph.outputs["logits"], OrtValue.ortvalue_from_numpy(self._logits[:rows]))
        for past, present, buffer in zip(facts.past, facts.present, self._buffers, strict=True):
            value = OrtValue.ortvalue_from_numpy(buffer[:rows])
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        return binding
