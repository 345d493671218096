"""What one stage of a recipe is told. No torch."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from mvlm_core.train.strict import Strict

from .scale_sampling import Shown

Part = Literal["vision_tower", "connector", "language_model"]
Beta = Annotated[float, Field(ge=0, lt=1)]


class LoraConfig(Strict):
    """Low-rank adapters on the language model's linear layers (through peft); the connector learns in full beside them.

    Attributes:
        rank, alpha, dropout: as in peft.
        four_bit: hold the frozen language model in NF4 meanwhile (QLoRA, arXiv 2305.14314); needs bitsandbytes.
    """

    rank: int = Field(gt=0)
    alpha: int = Field(gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    four_bit: bool = False


class LearningRates(Strict):
    """A rate for each part, where it is not the stage's `lr`; 0 keeps a part as it is but lets gradients pass."""

    vision_tower: float | None = Field(default=None, ge=0)
    connector: float | None = Field(default=None, ge=0)
    language_model: float | None = Field(default=None, ge=0)


class StageConfig(Strict):
    """One stage of the recipe: a loss, how long, what it shows, and how the weights move.

    Attributes:
        name: also that of its folder of checkpoints.
        loss: `patches` (the tower learns what is in a patch, and the connector's patches learn to speak the language
            model's words) or `answers`.
        steps, epochs: how long, one of the two; rows that are streamed need steps.
        pictures: pictures of a step, over all processes; their questions share one copy of them. Rows without a
            picture, and rows about several, count as one each.
        accumulate: into how many passes a process cuts its share of a step.
        questions: the most questions of a picture in a step, drawn anew each time; None takes all.
        show: the scales of a step, see `policies`; None draws one of the run's scales.
        task_weights: how readily a task's questions are drawn, where not all are taken; 1 where none is named.
        running_share: the share of steps whose questions are one running conversation instead of separate ones. Rows
            of several turns are running conversations in any case.
        max_tokens: longest conversation, at its finest scale; what is longer loses text at its end. None: no limit.
        frozen: parts of the model that stay as they are.
        lora: adapters instead of the language model's own weights.
        lr: learning rate (AdamW) of what has no other.
        lr_of: learning rates of parts.
        matrix_lr: learning rate of Muon for the hidden matrices outside the tower; None leaves them to AdamW.
        warmup: steps of rising rate; below 1, the share of the stage.
        patch_loss_weight: how much of the patch loss is added to the answers' loss.
        tag_weights: how much a group of the patch loss counts; 1 where none is named.
        activation_checkpointing: compute activations again in the backward pass, which saves memory for time.
        save_every, evaluate_every: in steps; None saves at the end only, and never evaluates.
        evaluate_pictures: how many pictures of the split val the loss at each of the run's scales is taken on.
    """

    name: str = Field(pattern=r"^\w[\w .-]*$")
    loss: Literal["patches", "answers"] = "answers"
    steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    pictures: int = Field(16, gt=0)
    accumulate: int = Field(1, gt=0)
    questions: int | None = Field(None, gt=0)
    show: tuple[Shown, ...] | None = Field(None, min_length=1)
    task_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    running_share: float = Field(0.0, ge=0, le=1)
    max_tokens: int | None = Field(None, gt=0)
    frozen: tuple[Part, ...] = ()
    lora: LoraConfig | None = None
    lr: float = Field(2e-3, gt=0)
    lr_of: LearningRates = LearningRates()
    matrix_lr: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(20, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    patch_loss_weight: float = Field(0.0, ge=0)
    tag_weights: dict[str, float] = Field(default_factory=dict)
    activation_checkpointing: bool = False
    save_every: int | None = Field(None, gt=0)
    evaluate_every: int | None = Field(None, gt=0)
    evaluate_pictures: int = Field(64, gt=0)

    @model_validator(mode="after")
    def _fits_together(self) -> StageConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a stage needs steps or epochs, one of the two")
        if self.pictures % self.accumulate:
            raise ValueError(f"{self.pictures} pictures cannot be cut into {self.accumulate} equal passes")
        if self.lora and self.loss == "patches":
            raise ValueError("the loss `patches` runs no language model: lora has nothing to adapt")
        if self.lora and self.matrix_lr:
            raise ValueError("lora trains with AdamW: leave matrix_lr out")
        if self.lora and "language_model" in self.frozen:
            raise ValueError("lora adapts the language model, which keeps its own weights: leave it out of frozen")
        if set(self.frozen) == set(get_args(Part)):
            raise ValueError("every part is frozen: leave one that is to learn out of frozen")
        if self.evaluate_every and self.loss == "patches":
            raise ValueError("the loss `patches` shows pictures at no scale: leave evaluate_every out")
        return self
