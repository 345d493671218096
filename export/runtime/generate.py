"""Prefill and decode: embeddings of a prompt in, ids of the answer out."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .manifest import Manifest
from .sessions import Cache, Decoder

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Generated:
    """The answer's ids without the stop id, and what the two phases took."""

    token_ids: tuple[int, ...]
    prefill_ms: float
    decode_ms: float


class EmbeddingTable:
    """The language model's embedding table (V, D), mapped from its file rather than read into memory."""

    def __init__(self, manifest: Manifest) -> None:
        place = manifest.embedding
        self._rows = np.memmap(manifest.path(place.file), place.dtype, "r", place.offset, place.shape)
        self._image_token_id = manifest.image_token_id

    def rows(self, ids: list[int]) -> Array:
        """(T ids) -> (T, D)."""
        return np.asarray(self._rows[ids])

    def prompt(self, ids: list[int], visual: Array) -> Array:
        """A prompt with its picture in place: S ids with m placeholders, (m, D) -> (S, D)."""
        embeds = self.rows(ids)
        embeds[np.asarray(ids) == self._image_token_id] = visual
        return embeds


def greedy(
    decoder: Decoder, table: EmbeddingTable, prompt: Array, *, stop_ids: frozenset[int], max_new_tokens: int
) -> Generated:
    """The likeliest token each time, until a stop id or `max_new_tokens`: prompt (S, D)."""
    started = time.perf_counter()
    cache = Cache(decoder, len(prompt) + max_new_tokens)
    token = int(decoder.step(prompt, cache).argmax())
    prefilled = time.perf_counter()
    ids: list[int] = []
    while token not in stop_ids:
        ids.append(token)
        if len(ids) == max_new_tokens:
            break
        token = int(decoder.step(table.rows([token]), cache).argmax())
    ended = time.perf_counter()
    return Generated(tuple(ids), 1000 * (prefilled - started), 1000 * (ended - prefilled))
