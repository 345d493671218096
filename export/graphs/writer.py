"""What a graph is written with: nodes, initializers, and the product of a linear layer in the precision asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from .grids import Grid, Numbers

# A module of transformers; torch types what hangs on a module as tensor or module, whatever it is.
Block = Any
Array = NDArray[Any]
# Makes an initializer of a name, an array, and, where numpy has no such type, the ONNX type and shape it stands for.
StoreTensor = Callable[..., TensorProto]


@dataclass(frozen=True)
class Geometry:
    """What a dialect must know of the language model."""

    num_heads: int
    kv_heads: int
    head_dim: int

    @property
    def widths(self) -> list[int]:
        """Channels of queries, keys and values, side by side in one product."""
        return [self.num_heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]


class Product(Protocol):
    """How linear layers multiply, without their bias."""

    @property
    def by_row(self) -> bool:
        """Whether a position's result is its own, whatever others are multiplied with it."""

    def __call__(self, writer: Writer, x: str, weight: Tensor, name: str, numbers: Numbers | None = None) -> str:
        """x (…, K) times the transpose of weight (N, K) -> (…, N). `numbers` are stored where the weight was rounded
        already; a form rounds it to the nearest otherwise."""

    def head(self, writer: Writer, x: str, weight: Tensor, name: str, numbers: Numbers | None = None) -> str:
        """The same for one position and the vocabulary: x (1, D), weight (V, D) -> (1, V)."""


class Form(Product, Protocol):
    """A product in one form of numbers."""

    def grid_of(self, k: int) -> Grid | None:
        """What the weights of a layer with K inputs are rounded to, where that is blocks."""

    def read(self, stored: Callable[[str], Array], n: int, k: int) -> Numbers:
        """The numbers (N, K) of a layer in a file, where `grid_of` has a grid: `stored` gives what lies there under the
        layer's name and an ending."""

    def rounded(self, weight: Tensor) -> Tensor:
        """The weight (N, K) rounded to the nearest, in float32."""

    def seen(self, x: Tensor, *, one_by_one: bool = False) -> Tensor:
        """The activations (…, K) of a step as the product rounds them, or of as many steps of one position each."""


class Writer:
    """Collects nodes and initializers; `store` makes an initializer of an array, `floats` is what is computed in."""

    def __init__(self, store: StoreTensor, product: Product, floats: np.dtype[Any]) -> None:
        self._store = store
        self.product = product
        self.floats = floats
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.made: set[str] = set()  # what the nodes put out

    @property
    def float_type(self) -> int:
        """ONNX's number for `floats`."""
        return helper.np_dtype_to_tensor_dtype(self.floats)

    def node(
        self, op: str, inputs: Sequence[str], *, outputs: Sequence[str] | None = None,
        domain: str = "", attributes: dict[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """Add a node and return the name of its first output."""
        names = list(outputs) if outputs else [f"{op}_{len(self.nodes)}"]
        name = f"{op}_{len(self.nodes)}"
        self.made.update(names)
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, domain=domain, **(attributes or {})))
        return names[0]

    def weight(self, name: str, values: Tensor) -> str:
        """A tensor of the model under its name there, in the type that is computed in."""
        if name not in self.initializers:
            self.store(name, values.detach().float().cpu().contiguous().numpy().astype(self.floats))
        return name

    def store(self, name: str, array: Array, onnx_type: int | None = None, shape: Sequence[int] | None = None) -> str:
        """An array as it is; `onnx_type` and `shape` say what it stands for where two numbers share a byte."""
        if name not in self.initializers:
            self.initializers[name] = self._store(name, array, onnx_type, shape)
        return name

    def integers(self, name: str, values: Sequence[int] | int) -> str:
        """Shapes and indices: small, and kept in the graph itself."""
        return self._small(name, np.asarray(values, np.int64))

    def scalar(self, name: str, value: float, floats: np.dtype[Any] | None = None) -> str:
        """One number, kept in the graph itself."""
        return self._small(name, np.asarray(value, floats or self.floats))

    def cast(self, x: str, floats: np.dtype[Any]) -> str:
        return self.node("Cast", [x], attributes={"to": helper.np_dtype_to_tensor_dtype(floats)})

    def linear(self, x: str, layers: Sequence[Block], name: str) -> str:
        """Linear layers that read the same input as one product, side by side: (…, D) -> (…, sum of widths)."""
        y = self.product(self, x, torch.cat([layer.weight for layer in layers]), f"{name}.weight")
        if layers[0].bias is None:
            return y
        return self.node("Add", [y, self.weight(f"{name}.bias", torch.cat([layer.bias for layer in layers]))])

    def _small(self, name: str, array: Array) -> str:
        if name not in self.initializers:
            self.initializers[name] = onnx.numpy_helper.from_array(array, name)
        return name


def epsilon(norm: Block) -> float:
    return float(norm.variance_epsilon)


def gain(writer: Writer, norm: Block, name: str) -> str:
    """The weights of a norm."""
    return writer.weight(f"{name}.weight", norm.weight)


def cache_names(layer: int) -> tuple[list[str], list[str]]:
    """What a layer reads, and what it writes: keys and values."""
    past, present = ([f"{time}.{layer}.{what}" for what in ("key", "value")] for time in ("past", "present"))
    return past, present
