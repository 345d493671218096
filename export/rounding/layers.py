"""The linear layers of a language model as its writer knows them, and its blocks one after another.

A block is called as the model itself calls it: what the first is called with is caught, and every block's output is
the next one's input. So only one block's work is in memory at a time, and the inputs of later blocks can be those that
the rounded weights of earlier ones give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.graphs.recipe import HEAD

# What reads one input and is written as one product, by the name of that product within a block.
_PRODUCTS = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",), "mlp.gate_proj": ("mlp.gate_proj",), "mlp.up_proj": ("mlp.up_proj",),
    "mlp.down_proj": ("mlp.down_proj",),
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A product of the writer's, and the modules that it stands for, their outputs one after another."""

    name: str
    modules: tuple[nn.Linear, ...]

    @property
    def weight(self) -> Tensor:
        """(N, K) in float32."""
        return torch.cat([module.weight.detach().float() for module in self.modules])

    @property
    def size(self) -> int:
        """How many weights."""
        return sum(module.weight.numel() for module in self.modules)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return sum(module.weight.shape[0] for module in self.modules), self.modules[0].weight.shape[1]


def layers_of(block: nn.Module, number: int) -> list[Layer]:
    """The products of a block."""
    return [
        Layer(f"layers.{number}.{name}", tuple(block.get_submodule(part) for part in parts))  # type: ignore[misc]
        for name, parts in _PRODUCTS.items()
    ]


def every_layer(model: Any) -> list[Layer]:
    """The products of all blocks of a language model, and its head, last."""
    found = [layer for number, block in enumerate(model.model.layers) for layer in layers_of(block, number)]
    return [*found, Layer(HEAD, (model.lm_head,))]


def reading_one_input(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The products of a block in the order in which they are computed, those that read one input together."""
    together: list[list[Layer]] = []
    for layer in layers:
        if layer.name.endswith("up_proj"):  # reads what `gate_proj` before it reads
            together[-1].append(layer)
        else:
            together.append([layer])
    return together


class Caught(Exception):
    """Ends a pass, from a hook, once what it was made for was seen."""


class BlockInputs:
    """What a block is called with for each of some rows; `through` moves on to the next block."""

    @torch.no_grad()
    def __init__(self, model: Any, rows: Sequence[Tensor]) -> None:
        """`rows` are embeddings (1, S, D)."""
        self.states: list[Tensor] = []
        self._others: list[dict[str, Any]] = []

        def catch(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            named = dict(named)
            self.states.append(args[0] if args else named.pop("hidden_states"))
            self._others.append(named)
            raise Caught

        hook = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            for row in rows:
                try:
                    model.model(inputs_embeds=row, use_cache=False)
                except Caught:
                    continue
        finally:
            hook.remove()

    @torch.no_grad()
    def through(self, block: nn.Module) -> Iterator[Tensor]:
        """What a block makes of each row: (1, S, D)."""
        for state, others in zip(self.states, self._others, strict=True):
            made = block(state, **others)
            yield made[0] if isinstance(made, tuple) else made

    @torch.no_grad()
    def until_caught(self, block: nn.Module) -> None:
        """Let each row into a block until a hook raises `Caught`."""
        for state, others in zip(self.states, self._others, strict=True):
            try:
                block(state, **others)
            except Caught:
                continue
