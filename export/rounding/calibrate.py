"""Numbers for the layers of a language model, block by block, from what real rows put through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from export.graphs.grids import Numbers
from export.graphs.recipe import Recipe

from .gptq import gptq
from .kept import KeptNumbers
from .layers import BlockInputs, Caught, every_layer, layers_of, reading_one_input

# Massive activations (arXiv 2402.17762) stand at one or two positions, whose answers nobody asks for; unclipped, they
# alone would say how to round. A position's input counts as at most so many times the median's size.
_MOST = 8.0
# Numbers of more bits are near enough as they are.
_CALIBRATED_BITS = 4


def calibrated_layers(model: Any, words: Mapping[str, str]) -> set[str]:
    """The layers of the blocks that `words` gives few enough bits to be rounded with calibration."""
    recipe = Recipe(words)
    grids = {layer.name: recipe.of(layer.name).grid_of(layer.shape[1]) for layer in every_layer(model)[:-1]}
    return {name for name, grid in grids.items() if grid and grid.bits <= _CALIBRATED_BITS}


@torch.no_grad()
def calibrate(
    model: Any, rows: Sequence[Tensor], words: Mapping[str, str], progress: Callable[[int], None]
) -> Mapping[str, Numbers]:
    """Round every layer that `words` gives four bits to: embeddings of rows, (1, S, D) each -> layer -> numbers.

    Every layer is fitted to what the rounded ones before it put out, those of its own block among them. A block with
    few bits is passed five times. The model is as it was afterwards.
    """
    recipe, few, found = Recipe(words), calibrated_layers(model, words), KeptNumbers()
    inputs = BlockInputs(model, rows)
    for number, block in enumerate(model.model.layers):
        rounded: dict[nn.Module, Tensor] = {}
        for layers in reading_one_input(layers_of(block, number)):
            squares = None
            if any(layer.name in few for layer in layers):
                with other_weights(rounded):
                    squares = _squares(block, layers[0].modules[0], inputs)
            for layer in layers:
                form = recipe.of(layer.name)
                grid = form.grid_of(layer.shape[1])
                if grid is not None and squares is not None and layer.name in few:
                    numbers = gptq(layer.weight, squares, grid)
                    found.keep(layer.name, numbers)
                    restored = numbers.restored()
                else:
                    restored = form.rounded(layer.weight)
                parts = restored.split([module.weight.shape[0] for module in layer.modules])
                rounded |= dict(zip(layer.modules, parts, strict=True))
        with other_weights(rounded):
            inputs.states = list(inputs.through(block))
        progress(1)
    return found


@contextmanager
def other_weights(weights: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Let linear layers have other weights for a while."""
    before = {module: module.weight for module in weights}
    try:
        for module, weight in weights.items():
            module.weight = nn.Parameter(weight, requires_grad=False)
        yield
    finally:
        for module, kept in before.items():
            module.weight = kept


def _squares(block: nn.Module, layer: nn.Module, inputs: BlockInputs) -> Tensor:
    """The sum of the outer products of what a layer of a block reads: (K, K). Nothing behind it is computed."""
    sums: list[Tensor] = []

    def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = clipped(args[0].float().flatten(0, -2))
        sums[:] = [sums[0].addmm_(x.T, x) if sums else x.T @ x]
        raise Caught

    hook = layer.register_forward_pre_hook(add)
    try:
        inputs.until_caught(block)
    finally:
        hook.remove()
    return sums[0]


def clipped(x: Tensor) -> Tensor:
    """Inputs (T, K), none of them more than so many times the median's size."""
    size = x.norm(dim=1, keepdim=True)
    return x * (size.median() * _MOST / size.clamp(min=1e-12)).clamp(max=1)
