"""What a router that reads pictures is fitted on: patches and words of questions, kept beside labels in few numbers.

Letters: B pictures, P patches, C cells of the grid that a reader sees, D width of the language model, w numbers kept of
it, V tokens that questions use.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from export.runtime.label_columns import PATCHES, PROJECTION, QUESTIONS, WORDS
from export.runtime.routing.reading import FINEST_SIDE, read_patches

Floats = NDArray[np.float32]

# So many numbers are kept of a patch and of a word; a narrower model is kept as it is.
WIDTH = 128
# What one picture takes at most: float16, on the finest grid.
MOST_BYTES = 2 * WIDTH * FINEST_SIDE**2
_PASSES = 3


def projection_of(patches: Floats, words: Floats) -> Floats:
    """Orthonormal columns (D, w) that keep most of some patches (n, D) and words (m, D), which count alike.

    By subspace iteration from a drawn start (Halko et al. 2011, arXiv 0909.4061), which is quick at any width.
    """
    width = patches.shape[1]
    if width <= WIDTH:
        return np.eye(width, dtype=np.float32)
    parts = [part / (np.linalg.norm(part) + 1e-12) for part in (patches, words)]
    found = np.random.default_rng(0).standard_normal((width, WIDTH))
    for _ in range(_PASSES):
        found = np.linalg.qr(sum(part.T @ (part @ found) for part in parts))[0]
    return found.astype(np.float32)


class PatchFiles:
    """Writes the patches of a sweep part by part, and the words of all questions at its end."""

    def __init__(self, folder: Path, table: Floats) -> None:
        """`folder` holds the sweep's parts, `table` (V, D) is the embedding table."""
        self.folder, self.table = folder, table
        self._projection: Floats | None = None

    @property
    def begun(self) -> bool:
        """Whether it is settled what projects patches and words."""
        return self._projection is not None or (self.folder / PROJECTION).is_file()

    def begin(self, words: Floats, tokens: Sequence[Sequence[tuple[str, Sequence[int]]]]) -> None:
        """Settle it by the first part, as `write` of that part does."""
        grids = np.stack([read_patches(picture) for picture in words])
        self._projected(grids, sorted({token for rows in tokens for _, ids in rows for token in ids}))

    def write(self, start: int, words: Floats, tokens: Sequence[Sequence[tuple[str, Sequence[int]]]]) -> None:
        """A part: its pictures are those from `start` on, `words` (B, P, D), and for each its rows' ids and tokens."""
        grids = np.stack([read_patches(picture) for picture in words])  # (B, C, D)
        used = sorted({token for rows in tokens for _, ids in rows for token in ids})
        kept = (grids @ self._projected(grids, used)).astype("<f2")  # (B, C, w)
        patches = pa.array([picture.tobytes() for picture in kept], pa.binary(kept[0].nbytes))
        numbers = pa.array(range(start, start + len(kept)), pa.int32())
        _write(self.folder / f"patches-{start:08d}.parquet", {"picture": numbers, "patches": patches})
        asked = [(name, start + i, list(ids)) for i, rows in enumerate(tokens) for name, ids in rows]
        names, pictures, ids = (list(column) for column in zip(*asked, strict=True))
        _write(
            self.folder / f"questions-{start:08d}.parquet",
            {"id": pa.array(names), "picture": pa.array(pictures, pa.int32()),
             "tokens": pa.array(ids, pa.list_(pa.int32()))},
        )  # fmt: skip

    def _projected(self, grids: Floats, used: list[int]) -> Floats:
        """The sweep's projection, made from its first part; a sweep that goes on finds it beside the parts."""
        if self._projection is None:
            file = self.folder / PROJECTION
            if not file.is_file():
                made = projection_of(grids.reshape(-1, grids.shape[-1]), self.table[used])
                beside = file.with_suffix(f".{os.getpid()}.partial")
                with beside.open("wb") as open_file:
                    np.save(open_file, made)
                beside.replace(file)
            self._projection = np.load(file, allow_pickle=False)
        return self._projection

    def assemble(self, whole: Path, starts: Sequence[int]) -> dict[str, Any]:
        """All parts as the files of labels/, in `whole`; returns what labels.json says of them."""
        for name in ("patches", "questions"):
            parts = [pq.read_table(self.folder / f"{name}-{start:08d}.parquet") for start in starts]
            pq.write_table(pa.concat_tables(parts), whole / f"{name}.parquet")
        tokens = pq.read_table(whole / QUESTIONS, columns=["tokens"])["tokens"].combine_chunks().flatten()
        used = np.sort(pc.unique(tokens).to_numpy())
        projection = np.load(self.folder / PROJECTION, allow_pickle=False)
        words = (self.table[used] @ projection).astype("<f2")  # (V, w)
        kept = pa.array([word.tobytes() for word in words], pa.binary(words[0].nbytes))
        pq.write_table(pa.table({"token": pa.array(used, pa.int32()), "word": kept}), whole / WORDS)
        np.save(whole / PROJECTION, projection)
        picture = pq.read_schema(whole / PATCHES).field("patches").type.byte_width
        width = projection.shape[1]
        return {"width": width, "cells": picture // (2 * width), "dtype": "float16", "bytes_a_picture": picture}


def _write(file: Path, columns: dict[str, pa.Array]) -> None:
    beside = file.with_suffix(f".{os.getpid()}.partial")
    pq.write_table(pa.table(columns), beside)
    beside.replace(file)
