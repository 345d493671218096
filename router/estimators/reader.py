"""A small network that reads the picture's patches and the question's words, where other estimators read features.

Every patch gives a key and a value, averaged to the grids that the scales show. The question's words are looked at
through the keys' own projection, so that the first product is already the match of words and patches. A few slots
gather the question, and twice look at all grids: at what they read there, and at how high and how wide they match.
What a slot found goes, beside the features, into one logit a scale.

The weights are plain arrays here: `reader_training` fits them, `router.graph.reader` writes them.

Letters: n rows, C cells of all grids, D width of the language model, w numbers kept of it, h channels, K scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from router.reading import Reading

from .base import Floats, ScaleEstimator, Tasks
from .basis import LIMIT
from .reader_shape import Inputs, Shape

# Of 900 pictures of the drawn benchmark it told no more than a blend of what reads features, and took a minute and more
# of fitting (benchmarks/results/reader_pool_seed0.json); of how many it would is not measured.
FEWEST_PICTURES = 1500


def grid_sides(side: int, scales: Sequence[int]) -> tuple[int, ...]:
    """The sides of the grids of a view of `side`: its own, those that the scales show and 2, where they divide it."""
    shown = {round(m**0.5) for m in scales if round(m**0.5) ** 2 == m} | {2}
    return tuple(sorted({s for s in shown if s <= side and side % s == 0} | {side, 1}, reverse=True))


class Reader(ScaleEstimator):
    """Fitted state: `shape_`; `weights_`, arrays by name, as half precision holds them; `mean_`, `per_std_` (d,) of the
    features; `projection_` (D, w), what the patches and words of the fit were projected by, and `wide_` by name, the
    weights that read these as the graphs hold them, (D, ·) in half precision."""

    reads_pictures = True

    def __init__(self, scales: tuple[int, ...] = (1,), epochs: int = 12, seed: int = 0) -> None:
        self.scales, self.epochs, self.seed = scales, epochs, seed

    def fit(self, x: Inputs, y: Floats, tasks: Tasks | None = None) -> Reader:  # type: ignore[override]
        from .reader_training import train

        side = round(x.reading.patches.shape[1] ** 0.5)
        std = x.features.std(axis=0, dtype=np.float64)
        self.n_features_in_ = x.features.shape[1]
        self.mean_ = x.features.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.per_std_ = np.where(std > 0, 1 / np.where(std > 0, std, 1), 0).astype(np.float32)
        self.projection_ = x.reading.projection
        self.shape_ = Shape(
            grid_sides(side, self.scales), self.projection_.shape[1], self.n_features_in_, len(self.scales)
        )
        found = train(self._standardised(x), y, self.shape_, self.epochs, self.seed)
        self.wide_ = {name: (self.projection_ @ found[name].T).astype(np.float16) for name in PROJECTED}
        # What half precision says, so that graphs and estimator have the very same weights.
        self.weights_ = {name: value.astype(np.float16).astype(np.float32) for name, value in found.items()}
        self.weights_ |= {name: (self.projection_.T @ wide.astype(np.float32)).T for name, wide in self.wide_.items()}
        return self

    def margins(self, x: Inputs) -> Floats:  # type: ignore[override]
        from .reader_training import margins

        return margins(self._standardised(x), self.weights_, self.shape_)

    def on_device(self, name: str) -> NDArray[np.float16]:
        """A weight as the graphs hold it; those that read patches and words stand before the projection, (D, ·)."""
        return self.wide_[name] if name in self.wide_ else self.weights_[name].astype(np.float16)

    def _standardised(self, x: Inputs) -> Inputs:
        z = (x.features.astype(np.float32) - self.mean_) * self.per_std_
        return replace(x, features=np.clip(z, -np.float32(LIMIT), np.float32(LIMIT)))


# Weights (·, w) that are multiplied with what the projection left of patches and words.
PROJECTED = ("patch.weight", "word.weight")


def why_not(reading: Reading | None) -> str | None:
    """Why no reader is among the candidates, for people; None where one is."""
    if reading is None:
        return "the labels hold no patches (mvlm label keeps them)"
    pictures = len(np.unique(reading.picture))
    if pictures < FEWEST_PICTURES:
        return f"{pictures} pictures are labelled, and it takes at least {FEWEST_PICTURES}"
    if find_spec("torch") is None:
        return 'torch is not installed (pip install "mvlm[train]")'
    return None
