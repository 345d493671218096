"""transformers' Trainer, told what a stage is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from export.runtime.errors import CheckFailed, MvlmError
from mvlm_core.modeling.model import MvlmForConditionalGeneration

from .config import TrainConfig
from .divergence import NotFinite, StopWhenNotFinite, all_finite, remedy, require_finite_log
from .optim import build_optimizer
from .packing import PADDING, mask_for
from .plan import Plan, Stream
from .resume import WholeCheckpoints, checkpoints, require_fitting_weights, step_of
from .stages import StageConfig

# transformers' name of it: the second one until 5.22, where the first is not known; the first one since, where the
# second is to go.
_CHECKPOINTING: str = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)


def process_state() -> PartialState:
    """Which of how many processes this is, as `torchrun` or `accelerate launch` started it."""
    return PartialState(cpu=not torch.cuda.is_available())


class StageTrainer(Trainer):
    """Trains one stage: its optimizer, its frozen parts, and the mask of its packed rows."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, stage: StageConfig, plan: Plan | Stream, **options: Any
    ) -> None:
        self.stage, self.schedule = stage, plan.schedule
        # Read by this process since the last line of the log, padding left out: counted where the batch lies, since
        # a GPU that is asked for a number is waited for.
        self.tokens: Tensor | int = 0
        self.whole = model
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.inner: MvlmForConditionalGeneration = inner
        super().__init__(model=model, train_dataset=plan, **options)
        self.remove_callback(PrinterCallback)  # metrics.jsonl and the bar say it
        self.guard = StopWhenNotFinite()
        self.add_callback(self.guard)
        self.add_callback(WholeCheckpoints())

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """That of the stage, when the Trainer wants it: one that was handed over is refused where FSDP shards."""
        if self.optimizer is None:
            embeddings = self.inner.get_input_embeddings()
            self.optimizer = build_optimizer(self.whole if model is None else model, self.stage, embeddings)
        return self.optimizer

    def run(self, checkpoint: Path | None) -> None:
        """Train, from a checkpoint on where there is one.

        Raises `MvlmError` when memory runs out, and `CheckFailed` at the first step that is not finite: what stood
        before it is kept as a checkpoint.
        """
        if checkpoint:
            require_fitting_weights(checkpoint, self.whole)
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except NotFinite as found:
            raise CheckFailed(self._diverged(found)) from None
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error):
                raise
            raise MvlmError(self._out_of_memory()) from None

    def _diverged(self, found: NotFinite) -> str:
        """What is said of a step that is not finite, after the weights before it were kept."""
        step, folder = int(self.state.global_step), Path(str(self.args.output_dir))
        if 0 < step < found.step and not (folder / f"checkpoint-{step}").is_dir():
            self.guard.put_back(self.whole)
            self.args.save_total_limit = None  # those before it may be the better ones: none makes room
            self._save_checkpoint(self.whole, trial=None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        kept = max(checkpoints(folder), key=step_of, default=None)
        return (
            f"stage {self.stage.name}: {found.what} is not finite in step {found.step}: {remedy(self.stage, found)},"
            f" and start again{f'; {kept} holds the weights before' if kept else ''}"
        )

    def _out_of_memory(self) -> str:
        stage, number = self.stage, int(self.state.global_step)
        share = stage.pictures // (stage.accumulate * self.args.world_size)
        if not stage.activation_checkpointing:
            remedy = "set activation_checkpointing: true"
        elif share > 1:
            remedy = f"double accumulate (now {stage.accumulate}: {share} pictures a pass)"
        else:
            remedy = f"show fewer visual tokens (now {self.schedule.scales[number]} in one step)"
        return f"stage {stage.name}: out of memory in step {number + 1}: {remedy}, then go on with --resume"

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:  # fmt: skip
        for part in self.stage.frozen:  # the Trainer puts the whole model in training mode; running statistics stay too
            self.inner.get_submodule(part).eval()
        if "blocks" in inputs:
            segments, blocks = inputs.pop("segments"), inputs.pop("blocks")
            attention = self.inner.config.text_config._attn_implementation
            inputs["attention_mask"] = mask_for(attention, segments, blocks)
            inputs |= {"use_cache": False, "return_logits": False}
            self.tokens = self.tokens + (blocks != PADDING).sum()
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        require_finite_log(logs, int(self.state.global_step))
        if "loss" in logs:
            logs["tokens"] = int(self.tokens)
            self.tokens = 0
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Part of every checkpoint. Raises `NotFinite` instead of keeping weights that are not finite."""
        if not all_finite(self.inner.state_dict().values()):
            raise NotFinite("a weight", int(self.state.global_step), moved=True)
        super().save_model(output_dir, _internal_call)

    def save_whole(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the model's weights and configuration, gathered from wherever they lie."""
        state_dict = self.accelerator.get_state_dict(self.model_wrapped) if model is self.model else None
        if self.args.should_save:
            model.save_pretrained(folder, state_dict=state_dict)
        self.accelerator.wait_for_everyone()


def training_arguments(config: TrainConfig, stage: StageConfig, folder: Path, *, steps: int) -> TrainingArguments:
    """The stage in transformers' words. Raises `MvlmError` for a tracker that is not installed, and for a step that
    cannot be shared out evenly."""
    state = process_state()
    passes = stage.accumulate * state.num_processes
    if stage.pictures % passes:
        raise MvlmError(
            f"stage {stage.name}: {stage.pictures} pictures cannot be shared out to {state.num_processes} processes"
            f" with accumulate {stage.accumulate}: make pictures a multiple of {passes}"
        )
    for tracker in config.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise MvlmError(f"report_to: {tracker} is not installed: pip install {tracker}, or leave it out")
    checkpointing: dict[str, Any] = {_CHECKPOINTING: stage.activation_checkpointing}
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=stage.pictures // passes,
        per_device_eval_batch_size=stage.pictures // passes,
        gradient_accumulation_steps=stage.accumulate,
        learning_rate=stage.lr,
        lr_scheduler_type=stage.schedule,
        warmup_steps=stage.warmup,
        max_grad_norm=stage.max_grad_norm,
        bf16=config.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=True,  # a tower's last norm, or the layer behind the one that is read
        seed=config.seed,
        train_sampling_strategy="sequential",  # the plan is already in order
        remove_unused_columns=False,
        dataloader_num_workers=config.workers,
        accelerator_config={"dispatch_batches": False},  # a packed batch cannot be cut apart again
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log 0 for a loss that is none, and wait for the GPU in each pass
        save_strategy="steps",
        save_steps=stage.save_every or steps,
        save_total_limit=2,
        eval_strategy="steps" if stage.evaluate_every else "no",
        eval_steps=stage.evaluate_every,
        prediction_loss_only=True,
        disable_tqdm=True,
        report_to=list(config.report_to) or "none",
        run_name=folder.parent.parent.name,
        **checkpointing,
    )
