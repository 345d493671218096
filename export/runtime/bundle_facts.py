"""What bundle.json says of a bundle's parts: graphs and how their tensors are called, tables, router, template."""

from __future__ import annotations

from dataclasses import dataclass

from .views.scale import ScaleWord

CACHE_FORMS = ("in place", "scatter", "concat")
BYTES = {"float32": 4, "float16": 2}  # of one number


@dataclass(frozen=True)
class Graph:
    """A file, and what its tensors are called: role -> name."""

    file: str
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True)
class DecoderGraph:
    """The language model. `past` and `present` hold one name for each layer's keys, then values, layer by layer.

    Each of these is (1, kv_heads, length, head_dim) of `cache_dtype`. By `cache`, the length is: "in place", what the
    caller likes, past and present being one buffer; "scatter", always `positions`, past and present being one buffer;
    "concat", what is in the cache before and after the step. A conversation holds at most `positions`.
    Where prompts are read in another precision than single tokens, `prefill` is the graph that reads them: same
    tensors, same cache.
    """

    graph: Graph
    past: tuple[str, ...]
    present: tuple[str, ...]
    kv_heads: int
    head_dim: int
    cache: str
    cache_dtype: str
    positions: int
    prefill: Graph | None = None


@dataclass(frozen=True)
class Embedding:
    """Where the embedding table (V, D) lies in a file of the bundle.

    With a `block` it lies there in 8 bits, `dtype` uint8: rows made up to whole blocks, 128 standing for nought, and at
    `scale_offset` a scale for each block, row by row, of `scale_dtype`.
    """

    file: str
    offset: int
    shape: tuple[int, int]
    dtype: str
    block: int | None = None
    scale_offset: int = 0
    scale_dtype: str = "float32"

    @property
    def blocks(self) -> int:
        """How many blocks a row has."""
        return -(-self.shape[1] // self.block) if self.block else 0

    @property
    def ends(self) -> int:
        """The first byte of the file behind table and scales."""
        rows, width = self.shape
        if not self.block:
            return self.offset + BYTES[self.dtype] * rows * width
        scales = BYTES[self.scale_dtype] * rows * self.blocks
        return max(self.offset + rows * self.blocks * self.block, self.scale_offset + scales)


@dataclass(frozen=True)
class RouterFacts:
    """The router's file, its scales (ascending), what each costs, and the picture's part of a router that reads it.

    `tile_tokens` is what the encoding of a tile is worth in tokens, where pictures have tiles.
    """

    file: str
    scales: tuple[ScaleWord, ...]
    costs: tuple[float, ...]
    cost_unit: str
    default_price: float
    reader: str | None = None
    tile_tokens: float | None = None


@dataclass(frozen=True)
class ChatFacts:
    """The model's chat template, and the special tokens that it may name, as `bos_token`."""

    template: str
    special_tokens: dict[str, str]
