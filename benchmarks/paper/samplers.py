"""M3's other ways to fewer tokens, as its ablations have them: patches taken out of the grid instead of averaged."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mvlm_core.modeling.connectors import Connector, PoolConnector
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.scales import require_scales

Sampling = Literal["average", "spatial", "sequential"]


class SpatialConnector(PoolConnector):
    """One patch of each cell, the middle one: every k-th of the grid, along both sides."""

    def tokens(self, values: Tensor, num_visual_tokens: int) -> Tensor:
        """(B, P, D) -> (B, m, D). Raises `MvlmError` for a scale not allowed."""
        require_scales([num_visual_tokens], self.scales)
        step = self.grid_side // round(num_visual_tokens**0.5)
        grid = values.unflatten(1, (self.grid_side, self.grid_side))  # (B, G, G, D)
        return grid[:, step // 2 :: step, step // 2 :: step].flatten(1, 2)  # (B, m, D)


class SequentialConnector(PoolConnector):
    """The first m patches, row by row from the top."""

    def tokens(self, values: Tensor, num_visual_tokens: int) -> Tensor:
        """(B, P, D) -> (B, m, D). Raises `MvlmError` for a scale not allowed."""
        require_scales([num_visual_tokens], self.scales)
        return values[:, :num_visual_tokens]


_CONNECTORS = {"spatial": SpatialConnector, "sequential": SequentialConnector}


def sample_patches(model: MvlmForConditionalGeneration, sampling: Sampling) -> None:
    """Let a pooling model gather its tokens in another way; the weights stay."""
    if sampling == "average":
        return
    pooling: Connector = model.connector
    assert isinstance(pooling, PoolConnector)
    table = pooling.positions.table if hasattr(pooling.positions, "table") else None
    first, last = pooling.mlp[0], pooling.mlp[2]
    assert isinstance(first, torch.nn.Linear)
    assert isinstance(last, torch.nn.Linear)
    other = _CONNECTORS[sampling](pooling.grid_side, first.in_features, last.out_features, positions=table is not None)
    other.load_state_dict(pooling.state_dict())
    model.connector = other
