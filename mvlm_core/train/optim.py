"""AdamW, or Muon for the hidden matrices beside it, as one optimizer that the Trainer can hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import nn

from .stages import Part, StageConfig


class MuonWithAdamW(torch.optim.Optimizer):
    """Two of torch's own optimizers over disjoint parameters; schedulers and checkpoints see one.

    Muon orthogonalises the update of a matrix, which is what broke the plateau of the small tower and language model
    (reference/feasibility.md, part 2); it is not meant for embeddings, norms and convolutions.
    """

    def __init__(
        self, muon_groups: list[dict[str, Any]], adamw_groups: list[dict[str, Any]], *, betas: tuple[float, float]
    ) -> None:
        parts: list[torch.optim.Optimizer] = [torch.optim.Muon(muon_groups, weight_decay=0.0)]
        if adamw_groups:
            parts.append(torch.optim.AdamW(adamw_groups, betas=betas, fused=True))
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


def build_optimizer(model: nn.Module, stage: StageConfig, embeddings: nn.Module) -> torch.optim.Optimizer:
    """AdamW at each part's own rate; with `matrix_lr`, Muon for every 2-D weight of a linear layer outside the tower.

    What is no matrix (norms, biases, positions) does not decay, and under Muon nothing does.
    """
    tables = {id(parameter) for parameter in embeddings.parameters()}
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in tables}
    muon: list[nn.Parameter] = []
    adamw: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if not parameter.requires_grad:
            continue
        if stage.matrix_lr and part != "vision_tower" and id(parameter) in linear:
            muon.append(parameter)
        else:
            rate = getattr(stage.lr_of, part)
            decay = stage.weight_decay if parameter.ndim > 1 else 0.0
            adamw[stage.lr if rate is None else rate, decay].append(parameter)
    groups = [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in adamw.items()]
    if not muon:
        return torch.optim.AdamW(groups, betas=stage.betas, fused=True)
    return MuonWithAdamW([{"params": muon, "lr": stage.matrix_lr}], groups, betas=stage.betas)


def part_of(name: str) -> str:
    """Which part of the model a weight belongs to, whatever wraps the model."""
    return next(part for part in name.split(".") if part in get_args(Part))
