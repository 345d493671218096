"""The recipe, read from top to bottom: data, model, then the stages one after another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from accelerate.utils import parse_flag_from_env
from peft import PeftModel
from torch import nn

from export.runtime.artefact import refuse_if_filled
from export.runtime.durable import sync, sync_tree
from export.runtime.errors import MvlmError, listed
from export.runtime.views.scale import ScaleWord, coarse_to_fine
from mvlm_core.checkpoints.remote_code import carry_code
from mvlm_core.checkpoints.run_folder import INDEX, WEIGHTS, read_run_facts, write_run_facts
from mvlm_core.data.pictures import pictures_sha256
from mvlm_core.data.reading import read_rows, rows_sha256, stream_rows
from mvlm_core.data.row import Row, require_answers
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor
from mvlm_core.scenes.patch_tags import PatchTags

from .build import build_model, build_processor, positions_of
from .config import TrainConfig, read_config, write_config
from .kernels import use_kernels
from .lora import add_lora, merge_lora, require_bitsandbytes
from .metrics_file import MetricsFile, Shown, StageProgress
from .packing import Packer, PicturesOnly, joined
from .plan import Group, Plan, Stream, group_rows
from .resume import last_whole_checkpoint
from .same_data import require_same_pictures, require_same_rows
from .sample_answer import SampleAnswers, askable
from .scale_sampling import AnyOf, possible_scales
from .stages import StageConfig
from .trainer import StageTrainer, process_state, training_arguments

Say = Callable[[str], None]


def train(config: TrainConfig, out: Path, *, resume: bool, overwrite: bool, progress: StageProgress, say: Say) -> None:
    """Train a run: a transformers model folder, train.yaml, metrics.jsonl; checkpoints go when it ends well.

    With `resume` an unfinished run goes on at its last whole checkpoint, and ends where an uninterrupted one would have
    ended. Raises `MvlmError` before anything is written or replaced for whatever is wrong with `out` or the rows.
    """
    state = process_state()
    check_start(out, config, resume=resume, overwrite=overwrite)
    if resume:
        require_same_rows(out, config.rows, say)
    _refuse_sharded_stages(config)
    data = read_data(config)
    if resume:
        require_same_pictures(out, data.rows, data.pictures_sha256 if data.train else None, say)
    processor = build_processor(config, data.train)
    check_stages(config, data, processor, out, say)
    model = build_model(config, processor)
    use_kernels(model, config)
    with state.main_process_first():
        if state.is_main_process and not resume:
            start_run(out, config, data)

    for number, stage in enumerate(config.stages):
        folder, seed = out / "checkpoints" / f"{number}-{stage.name}", config.seed + number
        plan = data.plan(config, stage, seed=seed)
        with state.main_process_first():  # it removes what was cut short
            checkpoint = last_whole_checkpoint(folder, say) if resume else None
        freeze(model, stage.frozen)
        adapted = adapt(model, stage, folder, seed)
        metrics = MetricsFile(out / "metrics.jsonl", stage, plan.schedule, Shown(progress, say), checkpoint)
        trainer = StageTrainer(
            adapted or model, stage, plan,
            args=training_arguments(config, stage, folder, steps=len(plan.schedule.scales)),
            eval_dataset=data.evaluations(config, stage),
            data_collator=_collator(config, stage, processor),
            callbacks=[metrics],
        )  # fmt: skip
        metrics.samples = sample_answers(config, stage, data, trainer.inner, processor)
        trainer.run(checkpoint)
        if adapted:
            model = fold_in(adapted, stage, folder, out)

    show_by_default(model, processor, coarse_to_fine(config.scales)[-1])
    save_run(trainer, model.eval(), processor, out)
    if state.is_main_process and not config.keep_checkpoints:
        shutil.rmtree(out / "checkpoints")


@dataclass(frozen=True)
class Data:
    """What a run learns from, and what it is evaluated on; one of the two is empty for a stream of rows."""

    train: list[Row]
    groups: list[Group]
    val_groups: list[Group]
    rows: Path

    def pictures_sha256(self) -> str:
        """The hash of the picture files that are learned from and evaluated on."""
        judged = (row for group in self.val_groups for row in group.rows)
        return pictures_sha256(picture for row in chain(self.train, judged) for picture in row.pictures)

    def plan(self, config: TrainConfig, stage: StageConfig, *, seed: int) -> Plan | Stream:
        if config.stream:
            return Stream(lambda: _to_learn(stream_rows(self.rows)), config.scales, stage, seed=seed)
        return Plan(self.groups, config.scales, stage, seed=seed)

    def evaluations(self, config: TrainConfig, stage: StageConfig) -> dict[str, Plan] | None:
        """For each scale of the run, the same pictures of the split val with all their questions."""
        if stage.evaluate_every is None:
            return None
        groups = self.val_groups[: stage.evaluate_pictures]
        if not groups:
            raise MvlmError(f"stage {stage.name}: evaluate_every needs rows of the split val, and {self.rows} has none")
        once = {"steps": 1, "epochs": None, "pictures": len(groups), "questions": None, "running_share": 0.0}
        return {
            str(scale): Plan(groups, (), stage.model_copy(update={**once, "show": (scale,)}), seed=0)
            for scale in config.scales
        }


def sample_answers(
    config: TrainConfig, stage: StageConfig, data: Data, model: MvlmForConditionalGeneration, processor: MvlmProcessor
) -> SampleAnswers | None:
    """What is asked at each evaluation; None where none is made, no row can be asked alone, or the model is sharded."""
    rows = askable(data.val_groups[: stage.evaluate_pictures]) if stage.evaluate_every else []
    return SampleAnswers(model, processor, rows, coarse_to_fine(config.scales)[-1]) if rows and not _sharded() else None


def read_data(config: TrainConfig) -> Data:
    """Read the rows. Raises `MvlmError` when none is of the split train."""
    rows = [] if config.stream else read_rows(config.rows)
    train_rows = list(_of_split(rows, "train"))
    if not config.stream and not train_rows:
        raise MvlmError(f"{config.rows} has no rows of the split train")
    require_answers(train_rows)
    answered = [row for row in _of_split(rows, "val") if all(turn.answers for turn in row.turns)]
    return Data(train_rows, group_rows(train_rows), group_rows(answered), config.rows)


def _of_split(rows: Iterator[Row] | Sequence[Row], split: str) -> Iterator[Row]:
    return (row for row in rows if row.split == split)


def _to_learn(rows: Iterator[Row]) -> Iterator[Row]:
    for row in _of_split(rows, "train"):
        require_answers([row])
        yield row


def check_start(out: Path, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Whether a run may start in `out`, or go on there. A run is finished when its weights are there: they come last.

    Raises `MvlmError` when `out` is filled, and on `resume` when it holds no unfinished run or one of another
    configuration.
    """
    if not resume:
        refuse_if_filled(out, overwrite=overwrite)
        return
    if any((out / name).is_file() for name in (WEIGHTS, INDEX)):
        raise MvlmError(f"{out} is a finished run: there is nothing to resume")
    if not (out / "train.yaml").is_file():
        raise MvlmError(f"{out} holds no unfinished run: start one without --resume")
    if read_config(out / "train.yaml").model_dump(exclude={"rows"}) != config.model_dump(exclude={"rows"}):
        raise MvlmError(f"{out} was started with another configuration: resume with {out / 'train.yaml'}")


def check_stages(config: TrainConfig, data: Data, processor: MvlmProcessor, out: Path, say: Say) -> None:
    """Raise `MvlmError` for what a later stage would stumble over, before the first one is begun."""
    tasks = {row.task for row in data.train}
    for stage in config.stages:
        if tasks and (unknown := set(stage.task_weights) - tasks):
            say(f"stage {stage.name}: task_weights names {', '.join(sorted(unknown))}, and no row to train on has it")
        data.evaluations(config, stage)
        collator = _collator(config, stage, processor)
        if isinstance(collator, Packer):
            _require_fitting(config, stage, data, collator)
        training_arguments(config, stage, out, steps=1)
        if stage.lora and stage.lora.four_bit:
            require_bitsandbytes()


def start_run(out: Path, config: TrainConfig, data: Data) -> None:
    """Make the folder of a run, in place of what is there."""
    folder = os.path.realpath(out)  # of a link, the folder that it stands for is replaced
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    write_run_facts(out, rows_sha256=rows_sha256(config.rows), pictures_sha256=data.pictures_sha256())
    (out / "metrics.jsonl").write_text("")
    write_config(out / "train.yaml", config)


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Let everything learn but the named parts."""
    model.requires_grad_(True)
    for part in parts:
        model.get_submodule(part).requires_grad_(False)


def adapt(model: MvlmForConditionalGeneration, stage: StageConfig, folder: Path, seed: int) -> PeftModel | None:
    """The model with adapters, for a stage that trains those."""
    if not stage.lora:
        return None
    return add_lora(model, stage.lora, frozen=stage.frozen, base=folder / "base", seed=seed)


def fold_in(adapted: PeftModel, stage: StageConfig, folder: Path, out: Path) -> MvlmForConditionalGeneration:
    """The model behind a stage that trained adapters, which are kept beside it."""
    assert stage.lora
    return merge_lora(adapted, stage.lora, base=folder / "base", adapter=out / "adapter")


def _require_fitting(config: TrainConfig, stage: StageConfig, data: Data, packer: Packer) -> None:
    """Raise `MvlmError` naming every row that is longer than the model's positions at the stage's finest scale."""
    shown = tuple(possible_scales(stage.show or (AnyOf(any_of=config.scales),)))
    faults = packer.fitting.faults(data.train, shown)
    if stage.running_share:
        longest = (sorted(group.rows, key=_size)[-(stage.questions or 0) :] for group in data.groups)
        faults += packer.fitting.faults((joined(rows) for rows in longest if len(rows) > 1), shown)
    if stage.evaluate_every:
        judged = [row for group in data.val_groups[: stage.evaluate_pictures] for row in group.rows]
        faults += packer.fitting.faults(judged, config.scales)
    if faults:
        raise MvlmError(f"stage {stage.name}: {len(faults)} rows of {data.rows} do not fit{listed(faults, most=1000)}")


def _size(row: Row) -> int:
    return sum(map(len, row.texts()))


def _collator(config: TrainConfig, stage: StageConfig, processor: MvlmProcessor) -> Packer | PicturesOnly:
    weight = 1.0 if stage.loss == "patches" else stage.patch_loss_weight
    tags = PatchTags(config.rows, processor, stage.tag_weights, total=weight) if weight else None
    if stage.loss == "patches":
        assert tags is not None
        return PicturesOnly(processor, tags)
    return Packer(processor, tags, max_tokens=stage.max_tokens, positions=positions_of(config.model))


def _refuse_sharded_stages(config: TrainConfig) -> None:
    """What `accelerate launch` was told is in the environment; the model is cut up for one Trainer, and stays so."""
    sharded = _sharded()
    if sharded and len(config.stages) > 1:
        raise MvlmError(
            f"{sharded[0]} shards the model for one stage, and {len(config.stages)} are configured: run each as a"
            " configuration of its own, the later ones with model.start"
        )


def show_by_default(model: MvlmForConditionalGeneration, processor: MvlmProcessor, scale: ScaleWord) -> None:
    """Callers who name no scale, as transformers' pipelines, get this one."""
    processor.default_scale = scale
    model.config.num_visual_tokens = scale if isinstance(scale, int) else None  # views say theirs with each picture


def _sharded() -> list[str]:
    return [name for name in ("FSDP", "DEEPSPEED") if parse_flag_from_env(f"ACCELERATE_USE_{name}")]


def save_run(trainer: StageTrainer, model: MvlmForConditionalGeneration, processor: MvlmProcessor, out: Path) -> None:
    """Write the model folder: a run with weights is a whole one, so they come last, and by one rename."""
    finished, state = out / "checkpoints" / "finished", process_state()
    with state.main_process_first():
        if state.is_main_process:
            shutil.rmtree(finished, ignore_errors=True)  # of one that was killed here, half a file perhaps
    trainer.save_whole(model, finished)
    if not state.is_main_process:
        return
    processor.save_pretrained(finished)
    carry_code(finished)
    began = read_run_facts(out)
    write_run_facts(finished, **{name: began[name] for name in ("rows_sha256", "pictures_sha256") if name in began})
    sync_tree(finished)
    for file in sorted(finished.iterdir(), key=lambda file: file.name in (WEIGHTS, INDEX)):
        file.replace(out / file.name)
    finished.rmdir()
    sync(out)
