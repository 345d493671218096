"""A model whose large matrices stay as they lie in its files, mapped, while everything is computed in float32.

What is stored in halves would take twice the memory in float32, and none of it could be given back. Here a matrix of
the language model becomes float32 when a product comes to it, and is forgotten again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Product(torch.autograd.Function):
    """x (…, K) times the transpose of a weight (N, K). Only x has a gradient, and float32 is not kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x @ weight.float().T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.float(), None


class _StoredLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = _Product.apply(input, self.weight)
        return y if self.bias is None else y + self.bias.float()


class _StoredEmbedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return functional.embedding(input, self.weight).float()


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _StoredLinear, nn.Embedding: _StoredEmbedding}


def compute_in_float32(model: Any) -> None:
    """Let a model compute in float32 whatever it is stored in: the matrices of its language model as they are used, all
    else at once. It can no longer be trained."""
    language = set(model.language_model.modules())
    for module in model.modules():
        kind = _KINDS.get(type(module))
        if module in language and kind and module.weight.dtype != torch.float32:
            module.__class__ = kind
            module.requires_grad_(False)
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                tensor.data = tensor.data.float()
