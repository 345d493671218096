"""The projectors of the families: from the patches of a vision tower to the tokens that a view makes by itself.

Letters: B pictures, G patches along a side, s patches along a side that become one token, D_vision and D widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers.activations import ACT2FN

ProjectorKind = Literal["mlp", "linear", "norm_mlp"]


@dataclass(frozen=True)
class Projector:
    """What stands between tower and pooling.

    Attributes:
        kind: `mlp` of two layers (LLaVA), `linear` without a bias (SmolVLM), `norm_mlp` with a norm before (InternVL).
        act: the activation between the layers, by transformers' name.
        bias: of the layers of `mlp`.
        shuffle: s; s x s patches side by side become one token, their channels one behind another.
    """

    kind: ProjectorKind = "mlp"
    act: str = "gelu"
    bias: bool = True
    shuffle: int = 1

    def build(self, vision_width: int, text_width: int) -> nn.Sequential:
        width = vision_width * self.shuffle**2
        if self.kind == "linear":
            return nn.Sequential(nn.Linear(width, text_width, bias=False))
        norm = [nn.LayerNorm(width)] if self.kind == "norm_mlp" else []
        first, second = nn.Linear(width, text_width, bias=self.bias), nn.Linear(text_width, text_width, bias=self.bias)
        return nn.Sequential(*norm, first, ACT2FN[self.act], second)

    def gather(self, features: Tensor, grid_side: int) -> Tensor:
        """Patches side by side as one: (B, G², D_vision) -> (B, (G/s)², s² D_vision)."""
        s = self.shuffle
        if s == 1:
            return features
        cells = features.unflatten(1, (grid_side // s, s, grid_side // s, s))  # (B, G/s, s, G/s, s, D_vision)
        return cells.transpose(2, 3).flatten(3).flatten(1, 2)  # (B, (G/s)², s² D_vision)
