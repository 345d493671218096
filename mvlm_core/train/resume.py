"""Which checkpoint a stopped stage goes on from: the last that is whole, and that fills the model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from export.runtime.artefact import sha256_file, write_json
from export.runtime.durable import sync_tree
from export.runtime.errors import CheckFailed, MvlmError

# Written when everything else of a checkpoint is there: the size and hash of each of its files.
_WHOLE = "whole.json"
_STEP = re.compile(r"checkpoint-(\d+)")


class WholeCheckpoints(TrainerCallback):
    """Marks each checkpoint when the Trainer has written all of it."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            sync_tree(folder)
            write_json(folder / _WHOLE, {name: _facts(folder / name) for name in _files(folder)})


def _files(folder: Path) -> list[str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(_WHOLE))
    return [file.relative_to(folder).as_posix() for file in files]


def _facts(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_file(file)}


def step_of(checkpoint: Path | None) -> int:
    match = _STEP.fullmatch(checkpoint.name) if checkpoint else None
    return int(match.group(1)) if match else 0


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a stage, whole or not."""
    return [path for path in folder.glob("checkpoint-*") if _STEP.fullmatch(path.name)]


def last_whole_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The last checkpoint of a stage that was written to its end; those after it are removed, and `say` told."""
    for checkpoint in sorted(checkpoints(folder), key=step_of, reverse=True):
        fault = _fault_of(checkpoint)
        if fault is None:
            return checkpoint
        say(f"{checkpoint} {fault}: it is left out, and the one before it taken")
        shutil.rmtree(checkpoint)
    return None


def _fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; older ones know the sizes of their files, and no hashes."""
    try:
        told = json.loads((checkpoint / _WHOLE).read_text())
    except (OSError, ValueError):
        return "was cut short"
    if not isinstance(told, dict):
        return "was cut short"
    sizes = {name: facts["bytes"] if isinstance(facts, dict) else facts for name, facts in told.items()}
    if sizes != {name: (checkpoint / name).stat().st_size for name in _files(checkpoint)}:
        return "was cut short"
    hashed = {name: facts for name, facts in told.items() if isinstance(facts, dict)}
    changed = [name for name, facts in hashed.items() if facts != _facts(checkpoint / name)]
    return f"holds other bytes than were written ({', '.join(changed)})" if changed else None


def require_fitting_weights(checkpoint: Path, model: nn.Module) -> None:
    """Raise `CheckFailed` unless the weights of a checkpoint are the model's, name for name and shape for shape.

    The Trainer loads what fits and logs the rest (reference/ecosystem.md, T3), so a renamed weight would start anew;
    of adapters, and of the parts that learn in full beside them, peft does the same. Sharded checkpoints are checked by
    those who load them.
    """
    adapted = isinstance(model, PeftModel)
    file = checkpoint / ("adapter_model.safetensors" if adapted else "model.safetensors")
    if not file.is_file():
        return
    try:
        with safe_open(file, framework="pt") as stored:
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MvlmError(f"{file} cannot be read ({error}): remove {checkpoint} and resume again") from None
    held = get_peft_model_state_dict(model, save_embedding_layers=False) if adapted else model.state_dict()
    wanted = {name: tuple(value.shape) for name, value in held.items()}
    tied = set(getattr(model, "all_tied_weights_keys", ()))
    wrong = {name for name, shape in shapes.items() if wanted.get(name) != shape}
    missing = {name for name in wanted if name not in shapes and name not in tied}
    if wrong or missing:
        names = ", ".join(sorted(wrong | missing)[:5])
        raise CheckFailed(
            f"{file} does not hold this model's weights: {len(wrong | missing)} tensors differ ({names}). Remove"
            f" {checkpoint} and resume again"
        )
