"""How far a bundle's choice of tokens is from the model's, on the reference answers: divergence, first choice, nats.

Letters: A tokens of a reference answer, V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tolerance import Lost, mean_of


@dataclass
class Fidelity:
    """What was seen at one scale, a number for each row: means over the tokens of its reference answer.

    Attributes:
        kl: the divergence of the bundle's chances of the next token from the model's, in nats.
        first: that of the first token alone, which the prefill chooses.
        top1: the share of tokens where both choose the same.
        nats: how many nats less likely a token of the reference answer has become.
    """

    kl: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)

    def see(self, torch_side: Tensor, file_side: Tensor, answer: Tensor) -> None:
        """Logits (A, V) of both sides at the positions that choose the tokens of `answer` (A,)."""
        wanted, found = (logits.double().log_softmax(-1) for logits in (torch_side, file_side))
        kl = (wanted.exp() * (wanted - found)).sum(-1)  # (A,)
        self.kl.append(float(kl.mean()))
        self.first.append(float(kl[0]))
        self.top1.append(float((wanted.argmax(-1) == found.argmax(-1)).double().mean()))
        self.nats.append(float((wanted - found).gather(1, answer[:, None]).mean()))

    def mean_kl(self, groups: list[str]) -> Lost:
        """The mean divergence with its interval."""
        return mean_of(self.kl, groups)

    def facts(self, groups: list[str]) -> dict[str, Any]:
        """What goes into verify.json."""
        means = {name: mean_of(getattr(self, name), groups) for name in ("kl", "first", "top1", "nats")}
        renamed = {"points": "mean", "low": "low", "high": "high"}
        return {
            name: {renamed[key]: value for key, value in asdict(mean).items()} for name, mean in means.items()
        }  # fmt: skip


def stacked(rows: list[np.ndarray[Any, Any]]) -> Tensor:
    """Logits of steps, (V,) each -> (steps, V)."""
    return torch.from_numpy(np.stack(rows))
