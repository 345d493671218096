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

from .layers import every_layer

# layer -> form -> nats a token.
Losses = dict[str, dict[str, float]]


# Of each module in turn, what it read and the gradient by what it put out: (T, K) and (T, N) for each row.
_Seen = dict[nn.Module, list[Tensor]]


def losses(
    model: Any, rows: Sequence[tuple[Tensor, int]], words: Sequence[str], progress: Callable[[int], None]
) -> Losses:
    """Losses of each form for each layer of the blocks, on rows of embeddings (1, S, D).

    Beside each row stands the first position whose choice of the next token counts. The sum over layers foretells the
    divergence of a whole model as far as its layers' errors do not work together. `progress` counts rows and layers.
    """
    layers = every_layer(model)[:-1]
    reads: _Seen = {module: [] for layer in layers for module in layer.modules}
    gradients: _Seen = {module: [] for module in reads}
    generator, tokens, found = torch.Generator().manual_seed(0), 0, Losses()
    for row, first in rows:
        tokens += row.shape[1] - first
        _one_row(model, row, first, generator, reads, gradients)
        progress(1)
    with torch.no_grad():
        for layer in layers:
            x, *_ = [reads.pop(module) for module in layer.modules]
            gradient = torch.cat([torch.cat(gradients.pop(module)) for module in layer.modules], dim=-1)
            moved = _moved(layer.weight, x, gradient, words)
            found[layer.name] = {word: 0.5 * total / tokens for word, total in moved.items()}
            progress(1)
    return found


def _one_row(model: Any, row: Tensor, first: int, generator: torch.Generator, reads: _Seen, gradients: _Seen) -> None:
    """Add what a row puts through all layers, and the gradients that come back."""

    def catch(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        reads[module].append(args[0].detach()[0])
        y.register_hook(lambda gradient: gradients[module].append(gradient[0]))

    hooks = [module.register_forward_hook(catch) for module in reads]
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


def _moved(weight: Tensor, rows: Sequence[Tensor], gradient: Tensor, words: Sequence[str]) -> dict[str, float]:
    """The sum over positions of the square of what each form's error, (T, K) -> (T, N), does along a gradient (T, N).

    Each row was a step of its own.
    """
    right, moved = torch.cat(list(rows)) @ weight.T, {}
    for word in words:
        used = form(word)
        error = torch.cat([used.seen(x) for x in rows]) @ used.rounded(weight).T - right
        moved[word] = float((error * gradient).sum(-1).square().sum())
    return moved
