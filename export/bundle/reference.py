"""What the files of a language model are compared with: torch computing with the numbers that they hold, and the bytes.

No copy of the model is made: a layer's numbers are read from the file when torch comes to it, and forgotten again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from export.graphs.decoder import write_decoder
from export.graphs.grids import TINY, Numbers
from export.graphs.recipe import Recipe
from export.graphs.targets import Plan
from export.graphs.writer import Array, Form
from export.rounding.layers import Layer, every_layer

# Rounding with calibration moves weights further than to the nearest number, to make good what others lost. An output's
# weights stay within this share of their size all the same; another output's are farther than all of it.
_FARTHEST = 0.5


class HeldNumbers(Mapping[str, Numbers]):
    """The numbers of some layers of a language model in a graph's file, by layer, read when they are asked for."""

    def __init__(self, file: Path, model: Any, recipe: Recipe, names: Sequence[str] | None = None) -> None:
        """Without `names`, those of every layer that is rounded in blocks."""
        layers = {layer.name: layer for layer in every_layer(model)}
        in_blocks = [name for name, layer in layers.items() if recipe.of(name).grid_of(layer.shape[1])]
        self._layers = {name: layers[name] for name in (in_blocks if names is None else names)}
        self._folder, self._recipe = file.parent, recipe
        self._there = {tensor.name: tensor for tensor in onnx.load(file, load_external_data=False).graph.initializer}

    def __getitem__(self, name: str) -> Numbers:
        layer, form = self._layers[name], self._recipe.of(name)
        return form.read(lambda ending: self._array(f"{name}.weight{ending}"), *layer.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def _array(self, name: str) -> Array:
        tensor = self._there[name]
        data = _bytes(tensor, self._folder)
        if tensor.data_type == TensorProto.INT4:  # two in a byte
            return data
        return data.view(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(tuple(tensor.dims))


@contextmanager
def as_written(model: Any, recipe: Recipe, held: Mapping[str, Numbers], *, one_by_one: bool) -> Iterator[None]:
    """Let the linear layers of a language model multiply as a graph's do: rounded weights, and rounded activations.

    Weights come from `held` where the form has blocks, and are rounded anew where not. `one_by_one` stands for steps of
    one position each, in one pass.
    """
    changed: list[Any] = []

    def multiplies(form: Form, layer: Layer, first: int, module: nn.Linear) -> Any:
        last = first + module.weight.shape[0]

        def forward(x: Tensor) -> Tensor:
            numbers = held.get(layer.name)
            weight = numbers.rows(first, last).restored() if numbers else form.rounded(module.weight.float())
            return functional.linear(form.seen(x, one_by_one=one_by_one), weight, module.bias)

        return forward

    try:
        for layer in every_layer(model):
            first = 0
            for module in layer.modules:
                changed.append(module)
                changed[-1].forward = multiplies(recipe.of(layer.name), layer, first, module)
                first += module.weight.shape[0]
        yield
    finally:
        for one in changed:
            one.__dict__.pop("forward", None)


def weight_faults(model: PreTrainedModel, plan: Plan, phase: str, file: Path, calibrated: Sequence[str]) -> list[str]:
    """Which tensors of a decoder's file are not what the model's weights come to: the graph is written once more, and
    every tensor held against the file's instead of being stored. A node that is not as written is named too.

    What was calibrated cannot be written once more; its numbers are taken from the file, and have to be near.
    """
    numbers = HeldNumbers(file, model, plan.recipe(phase), calibrated)
    faults = [
        f"{layer.name}.weight is not the model's"
        for layer in every_layer(model) if layer.name in numbers and _far(layer.weight, numbers[layer.name])
    ]  # fmt: skip
    found = onnx.load(file, load_external_data=False)
    there = {tensor.name: tensor for tensor in found.graph.initializer}

    def compare(
        name: str, array: Array, onnx_type: int | None = None, shape: Sequence[int] | None = None
    ) -> TensorProto:
        if name not in there or not np.array_equal(_bytes(there[name], file.parent), _flat(array)):
            faults.append(f"{name} is not the model's")
        return TensorProto(name=name)

    graph, _ = write_decoder(
        model, compare, plan.target.writer_dialect(plan.positions), file.name,
        product=plan.recipe(phase, numbers), floats=plan.floats, positions=plan.positions,
    )  # fmt: skip
    small = [tensor for tensor in graph.graph.initializer if tensor.raw_data]  # shapes and constants of the writer's
    faults += [f"{tensor.name} is another number" for tensor in small if there.get(tensor.name) != tensor]
    pairs = zip(graph.graph.node, found.graph.node, strict=False)
    faults += [f"{wanted.name} is another node" for wanted, node in pairs if wanted != node]
    if len(graph.graph.node) != len(found.graph.node):
        faults.append(f"{len(found.graph.node)} nodes instead of {len(graph.graph.node)}")
    return faults


def _far(weight: Tensor, numbers: Numbers) -> bool:
    """Whether the numbers of any output stand for another weight (N, K) than the model's."""
    error = (numbers.restored() - weight).norm(dim=1)  # (N,)
    return bool((error > _FARTHEST * weight.norm(dim=1).clamp(min=TINY)).any())


def _bytes(tensor: TensorProto, folder: Path) -> Array:
    """What stands in the file: of 4 bits two numbers to a byte, as they lie outside of it too."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return np.frombuffer(tensor.raw_data, np.uint8) if tensor.raw_data else _flat(numpy_helper.to_array(tensor))
    facts = external_data_helper.ExternalDataInfo(tensor)
    return np.memmap(folder / facts.location, np.uint8, "r", int(facts.offset or 0), (int(facts.length or 0),))


def _flat(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
