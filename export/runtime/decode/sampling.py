"""From logits to tokens, and from tokens to embeddings."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.runtime.errors import MvlmError
from export.runtime.manifest import Manifest
from export.runtime.request import Request

from .constraint import Allowed

Array = NDArray[np.float32]
_HOTTEST = 1e30  # hotter, a temperature leaves float32; every token is as likely long before
_FEW = 256  # tokens that are sorted before all are
# What stands for nought in a table of 8 bits.
_NOUGHT = np.float32(128)


class EmbeddingTable:
    """The language model's embedding table (V, D), mapped from its file rather than read into memory."""

    def __init__(self, manifest: Manifest) -> None:
        place, file = manifest.embedding, manifest.path(manifest.embedding.file)
        self._width, self._scales = place.shape[1], None
        shape: tuple[int, ...] = place.shape
        if place.block:
            blocks = (place.shape[0], place.blocks)
            self._scales = np.memmap(file, place.scale_dtype, "r", place.scale_offset, blocks)
            shape = (*blocks, place.block)
        self._rows = np.memmap(file, place.dtype, "r", place.offset, shape)

    def rows(self, ids: Sequence[int]) -> Array:
        """(T ids) -> (T, D). Raises `MvlmError` for ids that the table has no rows for: parts of two bundles."""
        wanted = np.asarray(ids, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self._rows):
            raise MvlmError(
                f"the prompt or tokenizer names a token beyond the {len(self._rows)} rows of the embedding table:"
                " export again",
                code="bad-bundle",
            )
        rows = self._rows[wanted].astype(np.float32)  # a table of halves too
        if self._scales is None:
            return rows
        scales = self._scales[wanted].astype(np.float32)
        restored = (rows - _NOUGHT) * scales[..., None]  # (T, blocks, block)
        return restored.reshape(len(wanted), -1)[:, : self._width]


class Sampler:
    """Picks the next token: the likeliest, or one drawn as the request says."""

    def __init__(self, request: Request, allowed: Allowed | None = None, said: Sequence[int] = ()) -> None:
        """`allowed` says which tokens may stand next (None: all), `said` which stand in the prompt, in their order."""
        self._request, self._allowed = request, allowed
        self._latest = deque(said, request.repetition_window)
        self._repeated = Counter(self._latest)
        self._generator = np.random.default_rng(request.seed)
        self._counts: Counter[int] = Counter()

    def pick(self, logits: Array) -> tuple[int, float]:
        """(V,) -> a token, and the probability that the model itself gives it."""
        wanted = self._wanted(logits)
        if self._allowed:
            wanted = self._allowed.masked(wanted)
        token = self._draw(wanted) if self._request.sampled else int(wanted.argmax())
        self._counts[token] += 1
        self._repeat(token)
        if self._allowed:
            self._allowed.take(token)
        return token, float(np.exp(logits[token] - log_sum_exp(logits)))

    def _wanted(self, logits: Array) -> Array:
        """The logits with biases and penalties, as OpenAI and vLLM define them: (V,) -> (V,)."""
        request, repeated = self._request, self._request.repetition_penalty
        if not (request.logit_bias or request.presence_penalty or request.frequency_penalty or repeated != 1):
            return logits
        wanted = logits.copy()
        if repeated != 1:
            ids = [token for token in self._repeated if token < len(wanted)]
            wanted[ids] = np.where(wanted[ids] > 0, wanted[ids] / repeated, wanted[ids] * repeated)
        for token, bias in request.logit_bias:
            if token < len(wanted):  # a head may be smaller than the table
                wanted[token] += bias
        for token, count in self._counts.items():
            wanted[token] -= request.presence_penalty + count * request.frequency_penalty
        return wanted

    def _repeat(self, token: int) -> None:
        """Add a token to those that are not to be repeated; the oldest is forgotten where the window is full."""
        latest, most = self._latest, self._latest.maxlen
        if most == 0:
            return
        if most is not None and len(latest) == most:
            self._repeated[latest[0]] -= 1
            if not self._repeated[latest[0]]:
                del self._repeated[latest[0]]
        latest.append(token)
        self._repeated[token] += 1

    def _draw(self, logits: Array) -> int:
        request = self._request
        probability = np.exp(
            log_softmax(logits / np.float32(min(request.temperature, _HOTTEST))).astype(np.float64)
        )  # (V,)
        likely = self._likeliest(probability)  # ids, the likeliest first
        head = probability[likely]
        # The nucleus of Holtzman et al., arXiv 1904.09751: the shortest head that holds `top_p`.
        total = head.sum() if request.top_k > 0 else 1.0
        head = head[: 1 + int(np.searchsorted(head.cumsum(), request.top_p * total * (1 - 1e-9)))]
        head = head[head >= request.min_p * head[0]]
        return int(likely[self._generator.choice(len(head), p=head / head.sum())])

    def _likeliest(self, probability: NDArray[np.float64]) -> NDArray[np.int64]:
        """The ids that tokens are drawn from, falling: as few are sorted as hold what is asked for."""
        request, top_k, size = self._request, self._request.top_k, len(probability)
        if top_k <= 0 and request.top_p >= 1 and request.min_p <= 0:
            return np.arange(size)  # all of them: in which order does not matter
        for most in (_FEW, size):
            count = min(most, size)
            found = np.argpartition(-probability, count - 1)[:count] if count < size else np.arange(size)
            order = found[np.lexsort((found, -probability[found]))]
            if 0 < top_k <= count:
                return order[:top_k]
            likely = probability[order]
            if top_k <= 0 and (likely.sum() >= request.top_p or likely[-1] < request.min_p * likely[0]):
                return order  # those that are left out would be drawn in no case
        return order


def likeliest(scores: Array, count: int) -> list[int]:
    """The ids of the highest of (V,), falling."""
    count = min(count, len(scores))
    found = np.argpartition(-scores, count - 1)[:count] if count else np.arange(0)
    return [int(token) for token in found[np.lexsort((found, -scores[found]))]]


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
