"""From logits to tokens, and from tokens to embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.runtime.manifest import Manifest
from export.runtime.request import Request

Array = NDArray[np.float32]


class EmbeddingTable:
    """The language model's embedding table (V, D), mapped from its file rather than read into memory."""

    def __init__(self, manifest: Manifest) -> None:
        place = manifest.embedding
        self._rows = np.memmap(manifest.path(place.file), place.dtype, "r", place.offset, place.shape)

    def rows(self, ids: Sequence[int]) -> Array:
        """(T ids) -> (T, D)."""
        return self._rows[np.asarray(ids, np.int64)].astype(np.float32)  # a table of halves too


class Sampler:
    """Picks the next token: the likeliest, or one drawn as the request says."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._generator = np.random.default_rng(request.seed)

    def pick(self, logits: Array) -> tuple[int, float]:
        """(V,) -> a token, and the probability that the model itself gives it."""
        token = self._draw(logits) if self._request.sampled else int(logits.argmax())
        return token, float(np.exp(logits[token] - log_sum_exp(logits)))

    def _draw(self, logits: Array) -> int:
        probability = log_softmax(logits / np.float32(self._request.temperature))  # (V,)
        order = np.argsort(-probability, kind="stable")
        likely = np.exp(probability[order].astype(np.float64))  # (V,), falling
        # The nucleus of Holtzman et al., arXiv 1904.09751: the shortest head that holds `top_p`.
        nucleus = 1 + int(np.searchsorted(likely.cumsum(), self._request.top_p * (1 - 1e-9)))
        head = likely[:nucleus]
        return int(order[self._generator.choice(len(head), p=head / head.sum())])


def first_margin(logits: Array) -> float:
    """By how much the likeliest token is likelier than the next: (V,) -> 0..1."""
    second, first = np.partition(logits, -2)[-2:]
    total = log_sum_exp(logits)
    return float(np.exp(first - total) - np.exp(second - total))


def log_sum_exp(logits: Array) -> np.float32:
    largest = logits.max()
    return largest + np.log(np.exp(logits - largest).sum())


def log_softmax(logits: Array) -> Array:
    """(V,) -> (V,)."""
    return logits - log_sum_exp(logits)
