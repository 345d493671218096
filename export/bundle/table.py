"""The embedding table of a bundle: as it is, or in 8 bits where the head is, whose bytes it then shares."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from export.graphs.grids import Grid, nearest
from export.graphs.quantize import packed
from export.graphs.recipe import HEAD
from export.graphs.targets import Plan
from export.graphs.weights import WeightFile
from export.graphs.writer import Array
from export.runtime.decode.sampling import EmbeddingTable
from export.runtime.errors import MvlmError
from export.runtime.manifest import Embedding, Manifest
from export.runtime.views.spec import ViewSpec

_BITS = 8
# Rows that are compared at once: a table is the largest tensor of a small model.
_ROWS = 8192


def write_table(weight: Tensor, plan: Plan, weights: WeightFile) -> Embedding:
    """Put a table (V, D) into the weight file, and say where it is."""
    shape, grid = (weight.shape[0], weight.shape[1]), plan.recipe("decode").of(HEAD).grid_of(weight.shape[1])
    if grid is None or grid.bits != _BITS or grid.zeros:
        table = _floats(weight, plan)
        return Embedding(weights.path.name, weights.place(table).offset, shape, table.dtype.name)
    numbers = nearest(weight, grid)
    values = weights.place(packed(numbers.values, grid.bits, grid.block, grid.middle))
    scale_dtype = "float16" if grid.half else "float32"
    scales = weights.place(numbers.scale.numpy().astype(scale_dtype))
    return Embedding(weights.path.name, values.offset, shape, "uint8", grid.block, scales.offset, scale_dtype)


def write_newline(model: Any, views: ViewSpec | None, weights: WeightFile) -> Embedding | None:
    """Put the vector (1, D) that ends each row of a grid of tiles into the weight file, where the model's views want
    one. Raises `MvlmError` for a model without."""
    if views is None or views.stitching is None:
        return None
    newline = getattr(model.connector, "newline", None)
    if newline is None:
        raise MvlmError("the views of this model are stitched, and it has no newline vector: import it again")
    place = weights.place(newline.detach().float().cpu().numpy()[None])
    return Embedding(weights.path.name, place.offset, (1, len(newline)), "float32")


def table_faults(model: Any, plan: Plan, manifest: Manifest) -> list[str]:
    """Whether the embedding table that a runtime reads is the model's."""
    wanted, table, place = model.get_input_embeddings().weight, EmbeddingTable(manifest), manifest.embedding
    fault = ["the embedding table is not the model's"]
    if tuple(wanted.shape) != place.shape:
        return fault
    grid = Grid(_BITS, place.block, half=place.scale_dtype == "float16") if place.block else None
    for first in range(0, len(wanted), _ROWS):
        part = wanted[first : first + _ROWS]
        right = nearest(part, grid).restored().numpy() if grid else _floats(part, plan).astype(np.float32)
        if not np.array_equal(right, table.rows(range(first, first + len(part)))):
            return fault
    return []


def _floats(weight: Tensor, plan: Plan) -> Array:
    return weight.detach().float().cpu().numpy().astype(plan.floats)
