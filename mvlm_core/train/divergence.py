"""A run that diverged stops at the first step that is not finite, before that step moves a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainingArguments

from .stages import StageConfig


class NotFinite(Exception):
    """Something of a step is NaN or infinite. `StageTrainer.run` says it to a person, with what to change.

    `moved`: whether learning had moved a weight by then.
    """

    def __init__(self, what: str, step: int, *, moved: bool) -> None:
        super().__init__(what, step)
        self.what, self.step, self.moved = what, step, moved


class StopWhenNotFinite(TrainerCallback):
    """Looks at the gradients of each step when they are all there: in NaN and infinity they show every other one.

    What a step changes besides (the running statistics of a tower's norms) is kept as it was, to be put back.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **told: Any) -> None:
        model: nn.Module = told["model"]
        self._before = {name: value.detach().clone() for name, value in model.named_buffers()}

    def put_back(self, model: nn.Module) -> None:
        """Let the step that was begun last have changed nothing; its gradients moved no weight."""
        for name, value in model.named_buffers():
            value.copy_(self._before[name])

    def on_pre_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **told: Any) -> None:
        model: nn.Module = told["model"]
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        if not all_finite(gradients):
            raise NotFinite("the gradient", state.global_step + 1, moved=state.global_step > 0)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number is NaN or infinite; one wait for the device, whatever the number of tensors."""
    inf = float("inf")
    largest = [torch.linalg.vector_norm(tensor.detach(), inf) for tensor in tensors if tensor.is_floating_point()]
    local = [value.full_tensor() if isinstance(value, DTensor) else value for value in largest]
    return not local or bool(torch.stack([value.float().to(local[0].device) for value in local]).isfinite().all())


def require_finite_log(logs: Mapping[str, float], step: int) -> None:
    """Raise `NotFinite` for a loss, or a norm, that is none: of the step, or of an evaluation behind it."""
    for name, value in logs.items():
        if name.endswith(("loss", "grad_norm")) and not math.isfinite(value):
            evaluated = name.startswith("eval")
            raise NotFinite(
                "the loss of the split val" if evaluated else f"the {name}", step, moved=evaluated or step > 1
            )


def remedy(stage: StageConfig, found: NotFinite) -> str:
    """What to change: what drives the weights apart, or what they begin with."""
    if not found.moved:
        return "no weight had moved yet, so look at the weights that it starts from, at its pictures, and at precision"
    rates = {"lr": stage.lr, **stage.lr_of.model_dump(exclude_none=True), "matrix_lr": stage.matrix_lr}
    told = ", ".join(f"{name} {rate:g}" for name, rate in rates.items() if rate)
    return f"lower the learning rates (now {told}), or warm up for longer (now {stage.warmup:g})"
