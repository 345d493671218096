"""Trains a reader. The one file of this package that imports torch.

Letters: B pictures, Q questions of the picture that has most, P patches of side G, C cells of all grids, T tokens,
w width, h channels, d features, K scales, s slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from export.runtime.routing.reading import MOST_TOKENS

from .base import Floats
from .reader_shape import CHANNELS, HEAD, HOPS, SLOTS, Inputs, Shape

Weights = dict[str, Floats]
_PICTURES = 16
_PICTURES_AT_ONCE = 64
_HELD_OUT = 0.08
_LR, _DECAY, _WARMUP = 3e-3, 0.05, 0.05
# Few pictures are learned by heart sooner.
_DROPOUT, _FEW_PICTURES, _DROPOUT_OF_FEW = 0.1, 2000, 0.2
_FEATURE_CHANNELS = 32


def train(x: Inputs, y: Floats, shape: Shape, epochs: int, seed: int) -> Weights:
    """The weights that are best on pictures held out, by cross entropy against graded scores (n, K)."""
    random = np.random.default_rng(seed)
    pictures = np.unique(x.reading.picture)
    held = np.isin(x.reading.picture, random.permutation(pictures)[: max(1, round(_HELD_OUT * len(pictures)))])
    dropout = _DROPOUT if len(pictures) >= _FEW_PICTURES else _DROPOUT_OF_FEW
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(shape, dropout)
        network.measure(x)
        descent = _Descent(network, epochs, math.ceil(len(pictures) * (1 - _HELD_OUT) / _PICTURES))
        best, least = arrays(network), math.inf
        for _ in range(epochs):
            for batch in batches(x[~held], random):
                descent.step(batch.loss(network, y[~held]))
            lost = _held_out_loss(network, x[held], y[held])
            if lost < least:
                best, least = arrays(network), lost
    return best


def margins(x: Inputs, weights: Weights, shape: Shape) -> Floats:
    """What a network of these weights says of every row: (n, K)."""
    network = Network(shape, 0.0)
    network.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in weights.items()})
    network.eval()
    found = np.empty((len(x), shape.num_scales), np.float64)
    with _one_thread(), torch.inference_mode():
        for batch in batches(x, None, _PICTURES_AT_ONCE):
            found[batch.rows] = batch.logits(network).numpy()
    return found


def arrays(network: nn.Module) -> Weights:
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


class _Descent:
    """AdamW with a warm-up and a cosine; matrices decay, and nothing else."""

    def __init__(self, network: nn.Module, epochs: int, steps_of_epoch: int) -> None:
        self.network, steps = network, epochs * steps_of_epoch
        matrices = [p for p in network.parameters() if p.ndim > 1]
        others = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": _DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=_LR, betas=(0.9, 0.98), fused=True)
        warmup = max(1, round(_WARMUP * steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))),
        )

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()


def _held_out_loss(network: nn.Module, x: Inputs, y: Floats) -> float:
    network.eval()
    with torch.inference_mode():
        lost = sum(batch.loss(network, y).item() * len(batch.rows) for batch in batches(x, None))
    network.train()
    return lost / len(x)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products this small are slower when they are shared out, and several fits may run beside each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Batch:
    """Some pictures with all their questions: patches (B, P, w), questions (B, Q, T, w) and features (B, Q, d), zero
    where nothing stands; where something does, by `asked` (B, Q), and which rows these are."""

    patches: Tensor
    questions: Tensor
    features: Tensor
    asked: Tensor
    rows: NDArray[np.int64]

    def logits(self, network: nn.Module) -> Tensor:
        """(rows, K)."""
        found: Tensor = network(self.patches, self.questions, self.features)[self.asked]
        return found

    def loss(self, network: nn.Module, y: Floats) -> Tensor:
        wanted = torch.from_numpy(np.asarray(y[self.rows], np.float32))
        return F.binary_cross_entropy_with_logits(self.logits(network), wanted)


def batches(x: Inputs, random: np.random.Generator | None, pictures: int = _PICTURES) -> Iterator[Batch]:
    """Whole pictures at a time, in an order that `random` draws."""
    reading = x.reading
    order = np.argsort(reading.picture, kind="stable")
    names, starts, counts = np.unique(reading.picture[order], return_index=True, return_counts=True)
    taken = np.arange(len(names)) if random is None else random.permutation(len(names))
    for start in range(0, len(taken), pictures):
        some = taken[start : start + pictures]
        asked = np.arange(counts[some].max()) < counts[some][:, None]  # (B, Q)
        rows = np.concatenate([order[starts[i] : starts[i] + counts[i]] for i in some])
        words = reading.questions(rows)  # (r, T, w)
        questions = np.zeros((*asked.shape, *words.shape[1:]), np.float32)
        features = np.zeros((*asked.shape, x.features.shape[1]), np.float32)
        questions[asked], features[asked] = words, x.features[rows]
        patches = np.asarray(reading.patches[names[some]], np.float32)
        seen = [torch.from_numpy(part) for part in (patches, questions, features, asked)]
        yield Batch(seen[0], seen[1], seen[2], seen[3], rows)


class Network(nn.Module):
    """See `reader`. The graphs of `router.graph.reader` are this `forward`, line by line."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        h, self.shape = CHANNELS, shape
        self.patch = nn.Linear(shape.width, 2 * h)
        self.place = nn.Parameter(0.02 * torch.randn(shape.cells, 2 * h))
        self.word = nn.Linear(shape.width, h)
        self.order = nn.Parameter(0.02 * torch.randn(MOST_TOKENS, h))
        self.beside = nn.ModuleList(nn.Linear(h, h, bias=i == 1) for i in range(3))
        self.gather = nn.Linear(h, SLOTS)
        self.ask = nn.ModuleList(nn.Linear(h, h) for _ in range(HOPS))
        self.learn = nn.ModuleList(nn.Linear(h + len(shape.sides) * (h + 3), h) for _ in range(HOPS))
        self.mix = nn.ModuleList(nn.Linear(SLOTS * h, SLOTS * h) for _ in range(HOPS))
        self.feature = nn.Linear(shape.num_features, _FEATURE_CHANNELS)
        self.norm = nn.LayerNorm(SLOTS * h)
        self.hidden = nn.Linear(SLOTS * h + _FEATURE_CHANNELS, HEAD)
        self.out = nn.Linear(HEAD, shape.num_scales)
        self.drop = nn.Dropout(dropout)
        # Orthonormal rows, the same for keys and words: the first product is the match of the two.
        nn.init.orthogonal_(self.patch.weight.data[:h])
        self.word.weight.data.copy_(self.patch.weight.data[:h])
        for ask in self.ask:
            assert isinstance(ask, nn.Linear)
            nn.init.eye_(ask.weight)
            nn.init.zeros_(ask.bias)

    @torch.no_grad()
    def measure(self, x: Inputs) -> None:
        """Let patches and words, of whatever size a model makes them, come out as numbers around 1."""
        for layer, seen in ((self.patch, x.reading.patches[:64]), (self.word, x.reading.words)):
            size = float(np.sqrt(np.square(np.asarray(seen, np.float32)).sum(axis=-1).mean()))
            layer.weight.mul_(CHANNELS**0.5 / max(size, 1e-6))

    def look(self, patches: Tensor) -> Tensor:
        """What depends on the picture: (B, P, w) -> (B, C, 2h)."""
        seen = self.patch(patches)
        side = round(seen.shape[1] ** 0.5)
        grids = []
        for cells in self.shape.sides:
            step = side // cells
            grids.append(seen.unflatten(1, (cells, step, cells, step)).mean(dim=(2, 4)).flatten(1, 2))
        return torch.cat(grids, dim=1) + self.place

    def forward(self, patches: Tensor, questions: Tensor, features: Tensor) -> Tensor:
        """(B, P, w), (B, Q, T, w), (B, Q, d) -> (B, Q, K)."""
        seen = self.look(patches)  # (B, C, 2h)
        seen = seen * self.drop(seen.new_ones(len(seen), 1, 2 * CHANNELS))  # a channel of a picture is dropped whole
        keys, values = seen.split(CHANNELS, dim=-1)  # (B, C, h)
        there = questions.abs().amax(dim=-1, keepdim=True) > 0  # (B, Q, T, 1)
        length = questions.shape[2]
        words = F.silu(self.word(questions) + self.order[:length]) * there
        padded = F.pad(words, (0, 0, 1, 1))
        around = sum(layer(padded[:, :, i : i + length]) for i, layer in enumerate(self.beside))
        words = (words + F.silu(around)) * there  # (B, Q, T, h)
        share = self.gather(words).masked_fill(~there, -1e9).softmax(dim=2)  # (B, Q, T, s)
        slots = share.transpose(2, 3) @ words  # (B, Q, s, h)
        for ask, learn, mix in zip(self.ask, self.learn, self.mix, strict=True):
            slots = slots + F.silu(self.drop(learn(self.read(ask(slots), slots, keys, values))))
            slots = slots + F.silu(self.drop(mix(slots.flatten(2)))).unflatten(2, (SLOTS, CHANNELS))
        found = torch.cat([self.norm(slots.flatten(2)), F.silu(self.feature(features))], dim=-1)
        return self.out(F.silu(self.hidden(self.drop(found))))

    def read(self, asked: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Each slot with what it finds on every grid: (B, Q, s, h) -> (B, Q, s, h + grids * (h + 3))."""
        size = asked.shape[:3]
        scores = asked.flatten(1, 2) @ keys.transpose(1, 2) / CHANNELS**0.5  # (B, Qs, C)
        found, start = [slots.flatten(1, 2)], 0
        for side in self.shape.sides:
            part, cells = scores[..., start : start + side**2], values[:, start : start + side**2]
            found += [part.softmax(dim=-1) @ cells, part.max(dim=-1, keepdim=True).values]
            found += [part.tanh().mean(dim=-1, keepdim=True), part.mean(dim=-1, keepdim=True)]
            start += side**2
        return torch.cat(found, dim=-1).unflatten(1, size[1:])
