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
from .layers import BlockInputs, Layer, every_layer, layers_of

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

    Later blocks see what the rounded ones before them put out. The model is as it was afterwards.
    """
    recipe, few, found = Recipe(words), calibrated_layers(model, words), KeptNumbers()
    inputs = BlockInputs(model, rows)
    for number, block in enumerate(model.model.layers):
        layers = layers_of(block, number)
        squares = _squares(block, layers, inputs)
        rounded: dict[nn.Module, Tensor] = {}
        for layer in layers:
            form = recipe.of(layer.name)
            grid = form.grid_of(layer.shape[1])
            if grid is not None and layer.name in few:
                numbers = gptq(layer.weight, squares[layer.name], grid)
                found.keep(layer.name, numbers)
                restored = numbers.restored()
            else:
                restored = form.rounded(layer.weight)
            rounded |= dict(zip(layer.modules, restored.split([m.weight.shape[0] for m in layer.modules]), strict=True))
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


def _squares(block: nn.Module, layers: Sequence[Layer], inputs: BlockInputs) -> dict[str, Tensor]:
    """The sum of the outer products of what each layer reads: layer -> (K, K). Those that read one input share it."""
    sums: dict[str, Tensor] = {}

    def adds(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = clipped(args[0].float().flatten(0, -2))
            sums[name] = sums[name].addmm_(x.T, x) if name in sums else x.T @ x

        return add

    hooks = [
        layer.modules[0].register_forward_pre_hook(adds(layer.name))
        for layer in layers if not layer.name.endswith("up_proj")
    ]  # fmt: skip
    try:
        for _ in inputs.through(block):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return sums | {name.replace("gate", "up"): sums[name] for name in list(sums) if name.endswith("gate_proj")}


def clipped(x: Tensor) -> Tensor:
    """Inputs (T, K), none of them more than so many times the median's size."""
    size = x.norm(dim=1, keepdim=True)
    return x * (size.median() * _MOST / size.clamp(min=1e-12)).clamp(max=1)
