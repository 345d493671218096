"""A frozen tower says the same of the same picture in every cell: it is asked once, and remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from mvlm_core.modeling.model import MvlmForConditionalGeneration


class TowerMemory:
    """Last hidden states by tower and picture, for as long as the process lives."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, bytes], Tensor] = {}

    def look_up(self, tower: nn.Module, whose: str, pixels: Tensor) -> Tensor:
        """What the tower leaves of some pictures: (B, 3, H, W) -> (B, D_vision, G, G). `whose` names the tower."""
        keys = [(whose, _digest(picture)) for picture in pixels]
        unseen = [n for n, key in enumerate(keys) if key not in self._states]
        if unseen:
            with torch.no_grad():
                states = tower(pixels[unseen]).last_hidden_state.float()
            self._states |= {keys[n]: state.clone() for n, state in zip(unseen, states, strict=True)}
        return torch.stack([self._states[key] for key in keys])


def _digest(*tensors: Tensor) -> bytes:
    digest = hashlib.blake2b()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.digest()


class _Remembering(nn.Module):
    """In a tower's place; it has no weights of its own, so that nothing is trained or saved twice."""

    def __init__(self, tower: nn.Module, whose: str, memory: TowerMemory) -> None:
        super().__init__()
        self._asked = (tower, whose, memory)  # a tuple: nn.Module would take the tower in as a part

    def forward(self, pixel_values: Tensor) -> Any:
        tower, whose, memory = self._asked
        return BaseModelOutput(last_hidden_state=memory.look_up(tower, whose, pixel_values))


MEMORY = TowerMemory()


@contextmanager
def remembering(model: MvlmForConditionalGeneration, memory: TowerMemory = MEMORY) -> Iterator[None]:
    """Within the block, a model whose tower stays as it is asks its memory first."""
    tower: Any = model.vision_tower.eval()
    whose = _digest(*tower.state_dict().values()).hex()
    model.vision_tower = _Remembering(tower, whose, memory)
    try:
        yield
    finally:
        model.vision_tower = tower
