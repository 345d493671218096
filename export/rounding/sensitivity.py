"""What each form of each layer costs this model: its share of the divergence from the model as it was trained.

A layer whose output y becomes y + d moves the model's choice of tokens by about half the square of g · d, where g is
the gradient, by y, of the log-likelihood of a token that is drawn from the model itself (the Fisher metric, in nats).
One pass there and back for each row gives it for every layer and form at once, activations' rounding included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from export.graphs.quantize import form

from .layers import Layer, every_layer

# layer -> form -> nats a token.
Losses = dict[str, dict[str, float]]


def losses(
    model: Any, rows: Sequence[tuple[Tensor, int]], words: Sequence[str], progress: Callable[[int], None]
) -> Losses:
    """Losses of each form for each layer of the blocks, on rows of embeddings (1, S, D).

    Beside each row stands the first position whose choice of the next token counts. The sum over layers foretells the
    divergence of a whole model as far as its layers' errors do not work together.
    """
    layers = every_layer(model)[:-1]
    sums: Losses = {layer.name: dict.fromkeys(words, 0.0) for layer in layers}
    generator, tokens = torch.Generator().manual_seed(0), 0
    for row, first in rows:
        tokens += row.shape[1] - first
        _one_row(model, layers, row, first, sums, generator)
        progress(1)
    return {name: {word: 0.5 * total / tokens for word, total in by_word.items()} for name, by_word in sums.items()}


def _one_row(
    model: Any, layers: Sequence[Layer], row: Tensor, first: int, sums: Losses, generator: torch.Generator
) -> None:
    """Add a row's losses to the sums of all layers."""
    reads: dict[nn.Module, Tensor] = {}
    gradients: dict[nn.Module, Tensor] = {}

    def catch(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        reads[module] = args[0].detach()[0]
        y.register_hook(lambda gradient: gradients.__setitem__(module, gradient[0]))

    hooks = [module.register_forward_hook(catch) for layer in layers for module in layer.modules]
    needing = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in needing:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            chance = (
                model(inputs_embeds=row.detach().requires_grad_(), use_cache=False).logits[0, first:].log_softmax(-1)
            )
            drawn = torch.multinomial(chance.detach().exp(), 1, generator=generator)
            chance.gather(1, drawn).sum().backward()
    finally:
        for parameter in needing:
            parameter.requires_grad_(True)
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for layer in layers:
            x = reads[layer.modules[0]]
            gradient = torch.cat([gradients[module] for module in layer.modules], dim=-1)
            for word in sums[layer.name]:
                sums[layer.name][word] += _moved(layer.weight, x, gradient, word)


def _moved(weight: Tensor, x: Tensor, gradient: Tensor, word: str) -> float:
    """The sum over positions of the square of what a form's error, (T, K) -> (T, N), does along a gradient (T, N)."""
    used = form(word)
    error = used.seen(x) @ used.rounded(weight).T - x @ weight.T
    return float((error * gradient).sum(-1).square().sum())
