"""Adapters, or a projector, over the model that they were trained on: the weights that LLaVA's loading makes of both.

LLaVA keeps a LoRA training as adapters of peft and `non_lora_trainables.bin`, and a first stage as `mm_projector.bin`.
Letters: r the rank of an adapter; W is (out, in), and becomes W + scale · B A with A (r, in) and B (out, r).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from export.runtime.errors import MvlmError, listed
from mvlm_core.backbones.tensor_files import Stored, read_file, read_json, read_tensors

from .unmerged import ADAPTER_CONFIG, ADAPTERS, PROJECTOR, REPLACED, require_merged, require_nothing_beside

# What of peft's settings changes what an adapter computes, and is not computed here.
_OFF = (
    "use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "use_qalora",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
)  # fmt: skip
_HALVES = ("lora_A", "lora_B")


def read_over_base(checkpoint: Path, base: Path) -> tuple[Stored, list[str]]:
    """The tensors of `base` with what `checkpoint` holds merged into them, and a line for each kind of it.

    Raises `MvlmError` for a base that is none, for nothing to merge, and naming every adapter that has no weight.
    """
    if not base.is_dir():
        raise MvlmError(f"there is no folder {base}: name that of the model which {checkpoint} was trained on")
    require_merged(base)
    stored = read_tensors(base)
    require_nothing_beside(stored)
    tensors, files, notes = dict(stored.tensors), list(stored.files), []
    for file in (checkpoint / name for name in (REPLACED, PROJECTOR)):
        if file.is_file():
            whole = _as_the_model_has_them(read_file(file))
            tensors |= whole
            files.append(file)
            notes.append(f"{len(whole)} tensors of {file.name} in place of those of {base}, or beside them")
    if (checkpoint / ADAPTER_CONFIG).is_file():
        held = next((checkpoint / name for name in ADAPTERS if (checkpoint / name).is_file()), None)
        if held is None:
            raise MvlmError(f"{checkpoint} holds {ADAPTER_CONFIG} and none of {', '.join(ADAPTERS)}: get it again")
        merged = _merged(tensors, read_file(held), _scale(checkpoint / ADAPTER_CONFIG), held)
        tensors |= merged
        files.append(held)
        notes.append(f"adapters of {held.name} merged into {len(merged)} weights of {base}")
    if not notes:
        raise MvlmError(f"{checkpoint} holds no adapters and no projector, so it needs no base: leave --base away")
    return replace(stored, tensors=tensors, files=files), notes


def _as_the_model_has_them(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of a wrapped model as the model itself has them, as LLaVA's load_pretrained_model makes them."""
    plain = {name.removeprefix("base_model."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("model.model.") for name in plain):
        return {name.removeprefix("model."): tensor for name, tensor in plain.items()}
    return plain


def _scale(file: Path) -> float:
    """What an adapter's product counts for. Raises `MvlmError` for adapters of another kind than plain LoRA."""
    told = read_json(file)
    odd = [key for key in _OFF if told.get(key)]
    odd += [key for key, plain in (("peft_type", "LORA"), ("bias", "none")) if told.get(key, plain) != plain]
    if odd:
        raise MvlmError(
            f"{file} sets {', '.join(f'{key} to {told[key]!r:.60}' for key in odd)}, which is not merged here: merge it"
            " with peft's merge_and_unload, and import what comes out"
        )
    rank, alpha = told.get("r"), told.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise MvlmError(f"{file} says no r and lora_alpha that an adapter can have: get it again")
    return float(alpha) / (rank**0.5 if told.get("use_rslora") else rank)


def _merged(
    tensors: Mapping[str, Tensor], adapters: Mapping[str, Tensor], scale: float, file: Path
) -> dict[str, Tensor]:
    """The weights that adapters change. Raises `MvlmError` naming every adapter that belongs to none."""
    pairs: dict[str, dict[str, Tensor]] = {}
    faults = []
    for name, tensor in adapters.items():
        module, _, half = name.removeprefix("base_model.model.").partition(".lora_")
        half = f"lora_{half.removesuffix('.weight').removesuffix('.default')}"
        if half in _HALVES:
            pairs.setdefault(f"{module}.weight", {})[half] = tensor
        else:
            faults.append(f"{name} is no adapter of LoRA")
    merged = {}
    for name, pair in pairs.items():
        weight, (down, up) = tensors.get(name), (pair.get(half) for half in _HALVES)
        if weight is None or down is None or up is None or up.ndim != 2 or down.ndim != 2:
            faults.append(f"{name}: " + ("the base has none" if weight is None else "half an adapter"))
        elif (len(up), *down.shape[1:]) != tuple(weight.shape) or up.shape[1] != len(down):
            faults.append(f"{name} is {tuple(weight.shape)}, and its adapter {tuple(down.shape)}, {tuple(up.shape)}")
        else:
            merged[name] = (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)
    if faults or not merged:
        raise MvlmError(
            f"{file} was made for another base: {len(faults)} of its adapters have no weight"
            f" there{listed(sorted(faults))}"
        )
    return merged


def folder_with(names: Sequence[str], *folders: Path) -> Path:
    """The first of some folders that holds a file of one of the names; else the first of all."""
    return next((folder for folder in folders if any((folder / one).is_file() for one in names)), folders[0])
