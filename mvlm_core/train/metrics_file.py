"""metrics.jsonl: a line of JSON for each step and each evaluation; and what of it is shown on the way."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from export.runtime.errors import MvlmError

from .plan import Schedule
from .resume import step_of
from .sample_answer import SampleAnswers
from .stages import StageConfig

_STATUS = Path("/proc/self/status")
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
_EVALUATION = re.compile(r"eval_(.+)_loss")
# What a bar is told: the stage's name and how many steps it has; it answers with a function to call after each, with
# what that step came to.
StageProgress = Callable[[str, int], Callable[[str], None]]


@dataclass(frozen=True)
class Shown:
    """Where what is shown on the way goes: the bars of the stages, and lines between them."""

    progress: StageProgress
    say: Callable[[str], None]


class MetricsFile(TrainerCallback):
    """Writes what each step showed and cost. A resumed stage first takes back the lines after its checkpoint."""

    def __init__(
        self, path: Path, stage: StageConfig, schedule: Schedule, shown: Shown, checkpoint: Path | None
    ) -> None:
        self.path, self.stage, self.schedule, self.shown = path, stage, schedule, shown
        self.start = step_of(checkpoint)
        self.samples: SampleAnswers | None = None
        self.advance: Callable[[str], None] = lambda told: None
        self.began = 0.0
        self.evaluation: dict[str, float] = {}  # the loss at each scale, as transformers tells one after another

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        # What stands behind the last line end was cut short with the run: its step comes after the checkpoint.
        whole = self.path.read_text().rpartition("\n")[0] if self.path.is_file() else ""
        lines = [line for number, line in enumerate(whole.splitlines(), 1) if not self._again(line, number)]
        self.path.write_text("".join(f"{line}\n" for line in lines))
        self.advance = self.shown.progress(self.stage.name, len(self.schedule.scales) - self.start)

    def _again(self, text: str, number: int) -> bool:
        """Whether a line is of a step that comes again. Raises `MvlmError` for a line that was not written here."""
        try:
            line = json.loads(text)
            return bool(line["stage"] == self.stage.name and line["step"] > self.start)
        except (ValueError, KeyError, TypeError):
            raise MvlmError(
                f"line {number} of {self.path} is no step of a run: take it out, and resume again"
            ) from None

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        self._write_evaluation(state)
        self.began = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        self._write_evaluation(state)  # a run that goes on from here will not evaluate this step again

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        self._write_evaluation(state)

    def _write_evaluation(self, state: Any) -> None:
        if not self.evaluation:
            return
        line = {"stage": self.stage.name, "step": state.global_step, "evaluation": self.evaluation}
        losses = "   ".join(f"{scale}: {loss:.3f}" for scale, loss in self.evaluation.items())
        self.shown.say(f"stage {self.stage.name}, step {state.global_step}: loss on val at each scale  {losses}")
        if self.samples:
            told = self.samples.ask(state.global_step // (self.stage.evaluate_every or 1) - 1)
            line["sample"] = told
            asked, answered, right = (_short(told[name]) for name in ("question", "prediction", "answer"))
            self.shown.say(f"  at {told['scale']}: {asked} -> {answered} (right: {right})")
        self._write(line)
        self.evaluation = {}

    def on_log(  # type: ignore[override]
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any], **_: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        for key, value in logs.items():
            if match := _EVALUATION.fullmatch(key):
                self.evaluation[match.group(1)] = value
        if "loss" not in logs:
            return
        seconds = time.perf_counter() - self.began
        scales = list(self.schedule.scales[state.global_step - 1]) if self.stage.loss == "answers" else []
        line = {
            "stage": self.stage.name, "step": state.global_step,
            "num_visual_tokens": scales, "loss": logs["loss"], "grad_norm": logs.get("grad_norm"),
            "lr": logs["learning_rate"], "seconds": round(seconds, 4), "memory_mib": peak_memory_mib(),
            "pictures_per_s": round(self.stage.pictures / seconds, 2),
            "tokens_per_s": round(logs.get("tokens", 0) * args.world_size / seconds),
        }  # fmt: skip
        self._write(line)
        self.advance(_facts(line))

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def _facts(line: dict[str, Any]) -> str:
    """A step for a bar: loss, rate, and what reads tokens where any are read."""
    read = f"{line['tokens_per_s']:,} tokens/s" if line["tokens_per_s"] else f"{line['pictures_per_s']:g} pictures/s"
    memory = f"{line['memory_mib']:,} MiB" if line["memory_mib"] else ""
    return f"loss {line['loss']:.3f}  lr {line['lr']:.1e}  {read}  {memory}".rstrip()


def _short(text: str, most: int = 60) -> str:
    """A text for a line: quoted, without line ends, cut where it is long."""
    folded = " ".join(text.split())
    return repr(folded if len(folded) <= most else f"{folded[:most]}...")


def peak_memory_mib() -> int | None:
    """The most memory that was held at once: of the GPU where there is one, else of the process; None if none tells."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    # Not getrusage's: a process that another started begins there with the most that one held.
    match = _PEAK.search(_STATUS.read_text()) if _STATUS.is_file() else None
    return round(int(match.group(1)) / 2**10) if match else None
