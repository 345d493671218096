"""Drawn tables whose pictures decide what no feature tells: for tests of readers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from router.labels import read_table
from router.reading import NO_TOKEN, Reading
from router.table import Table
from tests.support.labels_maker import Recipe, make_labels

SCALES = (1, 4, 9, 36)
KINDS, WIDTH, SIDE = 6, 16, 6


def read_recipe(folder, pictures: int = 320, seed: int = 0, wide: int = WIDTH) -> Table:
    """A table of `pictures` pictures, four questions each, of which a kind of thing is large in some and small in
    others. A question names a thing, and few tokens are right where it is large. Features say nothing of it.

    `wide` is the width of the model: the kinds lie in `WIDTH` directions of it.
    """
    make_labels(folder / "labels", Recipe(rows=4 * pictures, groups=pictures, scales=SCALES, picture=0.0, seed=seed))
    table = read_table(folder / "labels")
    random = np.random.default_rng(seed)
    kinds = np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0][:KINDS]
    # In each picture every kind is there once, as one patch or as a quarter of the grid.
    large = random.random((pictures, KINDS)) < 0.5
    patches = np.zeros((pictures, SIDE, SIDE, WIDTH), np.float32)
    for picture in range(pictures):
        for kind in range(KINDS):
            row, column = random.integers(0, SIDE - 2, 2)
            reach = 3 if large[picture, kind] else 1
            patches[picture, row : row + reach, column : column + reach] += kinds[kind]
    patches += 0.1 * random.standard_normal(patches.shape)
    picture = np.char.lstrip(table.groups, "g").astype(np.int64)
    asked = random.integers(0, KINDS, len(table))
    # A word that says nothing stands before the kind, and sometimes one behind it.
    tokens = np.column_stack([np.full(len(table), KINDS), asked, random.choice([KINDS, NO_TOKEN], len(table))])
    words = np.vstack([kinds, random.standard_normal((1, WIDTH)) / 4])
    need = np.where(large[picture, asked], 0.0, 5.0)
    chance = 0.25 + 0.7 / (1 + np.exp(-1.5 * (np.log2(SCALES) - need[:, None])))  # (n, K)
    samples = (random.random(chance.shape) < chance).astype(np.float32)[:, None]
    projection = np.linalg.qr(random.standard_normal((wide, WIDTH)))[0] if wide > WIDTH else np.eye(WIDTH)
    reading = Reading(
        patches.reshape(pictures, -1, WIDTH).astype(np.float16), picture, tokens, words.astype(np.float16),
        projection.astype(np.float32),
    )  # fmt: skip
    return replace(table, samples=samples, probability=chance.astype(np.float32), reading=reading)
