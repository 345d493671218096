"""Muon for the hidden matrices, AdamW for the rest, as one optimizer that the Trainer can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """Two of torch's own optimizers over disjoint parameters; schedulers and checkpoints see one.

    Muon orthogonalises the update of a matrix, which is what broke the plateau of the small tower and language model
    (reference/feasibility.md, part 2); it is not meant for embeddings, norms and convolutions.
    """

    def __init__(self, muon_groups: list[dict[str, Any]], adamw_groups: list[dict[str, Any]]) -> None:
        parts: list[torch.optim.Optimizer] = []
        if muon_groups:
            parts.append(torch.optim.Muon(muon_groups, weight_decay=0.0))
        if adamw_groups:
            parts.append(torch.optim.AdamW(adamw_groups, weight_decay=0.0, betas=(0.9, 0.98), fused=True))
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        self._share_groups()

    def _share_groups(self) -> None:
        """A scheduler writes into our groups, and the parts read theirs: let them be the same."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]


def build_optimizer(
    model: nn.Module, *, matrix_lr: float, lr: float, tower_lr: float | None, embeddings: nn.Module, tower: nn.Module
) -> MuonWithAdamW:
    """Muon for every 2-D weight of a linear layer outside the tower, AdamW for the rest, the tower at its own rate."""
    in_tower = {id(parameter) for parameter in tower.parameters()}
    tables = {id(parameter) for parameter in embeddings.parameters()}
    matrices = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in tables
    } - in_tower
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rest = [p for p in trained if id(p) not in matrices | in_tower]
    adamw = [
        {"params": rest, "lr": lr},
        {"params": [p for p in trained if id(p) in in_tower], "lr": lr if tower_lr is None else tower_lr},
    ]
    muon = [{"params": [p for p in trained if id(p) in matrices], "lr": matrix_lr}]
    return MuonWithAdamW([g for g in muon if g["params"]], [g for g in adamw if g["params"]])
