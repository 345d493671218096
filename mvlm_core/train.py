"""The recipe, read from top to bottom: data, model, then the stages one after another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from export.runtime.artefact import refuse_if_filled
from export.runtime.errors import MvlmError

from .build import build_model, build_processor
from .config import StageConfig, TrainConfig, read_config, write_config
from .dataset import Batch, Packer, PatchTags, Plan, group_pictures
from .losses import answer_loss, patch_loss
from .model import MvlmForConditionalGeneration
from .optim import build_optimizer
from .rows import read_rows
from .runs import WEIGHTS

# What a bar is told: the stage's name and how many steps it has; it answers with a function to call after each.
StageProgress = Callable[[str, int], Callable[[], None]]


def start_run(out: Path, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Make the folder of a run, or find the unfinished one that is to go on.

    A run is finished when its weights are there, which are written last. Raises `MvlmError` when `out` is filled, and
    on `resume` when it holds no unfinished run or one of another configuration.
    """
    if not resume:
        refuse_if_filled(out, overwrite=overwrite)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        write_config(out / "train.yaml", config)
        (out / "metrics.jsonl").write_text("")
        return
    if (out / WEIGHTS).is_file():
        raise MvlmError(f"{out} is a finished run: there is nothing to resume")
    if not (out / "train.yaml").is_file():
        raise MvlmError(f"{out} holds no unfinished run: start one without --resume")
    if read_config(out / "train.yaml").model_dump(exclude={"rows"}) != config.model_dump(exclude={"rows"}):
        raise MvlmError(f"{out} was started with another configuration: resume with {out / 'train.yaml'}")


def train(config: TrainConfig, out: Path, *, resume: bool, progress: StageProgress) -> None:
    """Train into the folder that `start_run` made: a transformers model folder, metrics.jsonl and checkpoints.

    With `resume` it goes on at the last checkpoint, and ends where an uninterrupted run would have ended.
    """
    rows = [row for row in read_rows(config.rows) if row.split == "train"]
    if not rows:
        raise MvlmError(f"{config.rows} has no rows of the split train")
    pictures = group_pictures(rows)
    processor = build_processor(config, rows)
    model = build_model(config, processor)

    for number, stage in enumerate(config.stages):
        tags = PatchTags(config.rows, processor, stage.tag_weights) if _reads_tags(stage) else None
        plan = Plan(pictures, config.scales, stage, seed=config.seed + number)
        freeze(model, stage.frozen)
        folder = out / "checkpoints" / f"{number}-{stage.name}"
        checkpoint = _last_checkpoint(folder) if resume else None
        metrics = MetricsFile(out / "metrics.jsonl", stage, plan, progress, start=_step_of(checkpoint))
        trainer = StageTrainer(
            model=model,
            args=_arguments(config, stage, folder),
            train_dataset=plan,
            data_collator=Packer(pictures, processor, tags),
            optimizers=(_optimizer(model, stage), None),
            callbacks=[metrics],
        )
        trainer.stage = stage
        trainer.remove_callback(PrinterCallback)  # metrics.jsonl and the bar say it
        trainer.train(resume_from_checkpoint=checkpoint)

    model.eval()
    finished = out / "checkpoints" / "finished"
    processor.save_pretrained(finished)
    model.save_pretrained(finished)
    # A run with weights is a whole one, so they come last, and by one rename.
    for file in sorted(finished.iterdir(), key=lambda file: file.name == WEIGHTS):
        file.replace(out / file.name)
    finished.rmdir()


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Let everything learn but the named parts."""
    model.requires_grad_(True)
    for part in parts:
        model.get_submodule(part).requires_grad_(False)


class StageTrainer(Trainer):
    """transformers' Trainer with a stage's own loss."""

    stage: StageConfig

    def compute_loss(  # type: ignore[override]
        self, model: MvlmForConditionalGeneration, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:  # fmt: skip
        batch = Batch(**inputs)
        for part in self.stage.frozen:  # the Trainer puts the whole model in training mode; running statistics stay too
            model.get_submodule(part).eval()
        with self.accelerator.autocast():
            if self.stage.loss == "patches":
                return patch_loss(model, batch)
            return answer_loss(model, batch, patch_loss_weight=self.stage.patch_loss_weight)


@dataclass
class MetricsFile(TrainerCallback):
    """One line of JSON a step, the scale that was drawn among it; drives the progress bar as well."""

    path: Path
    stage: StageConfig
    plan: Plan
    progress: StageProgress
    start: int

    def __post_init__(self) -> None:
        # Steps after the checkpoint were run before the stop and are run again: their old lines go.
        lines = [line for line in self.path.read_text().splitlines() if not self._again(json.loads(line))]
        self.path.write_text("".join(f"{line}\n" for line in lines))

    def _again(self, line: dict[str, Any]) -> bool:
        return line["stage"] == self.stage.name and line["step"] > self.start

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        self.advance = self.progress(self.stage.name, self.stage.steps - self.start)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        self.advance()

    def on_log(  # type: ignore[override]
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any], **_: Any
    ) -> None:
        if "loss" not in logs:
            return
        scale = self.plan.scale_of_step[state.global_step - 1] if self.stage.loss == "answers" else None
        line = {
            "stage": self.stage.name, "step": state.global_step, "num_visual_tokens": scale,
            "loss": logs["loss"], "grad_norm": logs.get("grad_norm"), "lr": logs["learning_rate"],
        }  # fmt: skip
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _reads_tags(stage: StageConfig) -> bool:
    return stage.loss == "patches" or stage.patch_loss_weight > 0


def _optimizer(model: MvlmForConditionalGeneration, stage: StageConfig) -> torch.optim.Optimizer:
    return build_optimizer(
        model, matrix_lr=stage.matrix_lr, lr=stage.lr, tower_lr=stage.tower_lr,
        embeddings=model.get_input_embeddings(), tower=model.vision_tower,
    )  # fmt: skip


def _arguments(config: TrainConfig, stage: StageConfig, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.pictures,
        learning_rate=stage.lr,
        lr_scheduler_type="cosine",
        warmup_steps=stage.warmup_steps,
        max_grad_norm=stage.max_grad_norm,
        bf16=config.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        train_sampling_strategy="sequential",  # the plan is already in order
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="steps",
        save_steps=stage.save_every or stage.steps,
        save_total_limit=2,
        disable_tqdm=True,
        report_to="none",
    )


def _last_checkpoint(folder: Path) -> str | None:
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _step_of(checkpoint: str | None) -> int:
    return int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars off the terminal: ours are there."""
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
