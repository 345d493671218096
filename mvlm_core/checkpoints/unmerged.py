"""Files beside the weights of a checkpoint that change its model: nothing of a folder is left unread in silence."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from export.runtime.errors import MvlmError
from mvlm_core.backbones.tensor_files import Stored, read_file

ADAPTER_CONFIG, ADAPTERS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
# What LLaVA keeps of a training beside adapters, and of one that had none.
REPLACED, PROJECTOR = "non_lora_trainables.bin", "mm_projector.bin"
_OF_LAYERS = ("weight", "bias", "newline", "query", "pos_embed")  # how the name of a layer's tensor ends
_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


def require_merged(checkpoint: Path) -> None:
    """Raise `MvlmError` for a folder of adapters: what they change would be left out, and the base alone read."""
    found = sorted(name for name in (ADAPTER_CONFIG, *ADAPTERS, REPLACED) if (checkpoint / name).is_file())
    if found:
        raise MvlmError(
            f"{checkpoint} holds adapters ({', '.join(found)}), which are nothing without their base: name its folder"
            " with --base, or merge them into it first (LLaVA's scripts/merge_lora_weights.py, or merge_and_unload of"
            " peft), and import what comes out"
        )
    if (checkpoint / PROJECTOR).is_file() and not any((checkpoint / name).is_file() for name in _WEIGHTS):
        raise MvlmError(
            f"{checkpoint} holds a projector ({PROJECTOR}) without its language model: name that one's folder with"
            " --base"
        )


def require_nothing_beside(stored: Stored) -> None:
    """Raise `MvlmError` for a projector, or safetensors, that lie beside the weights and hold something else.

    Published checkpoints keep a copy of their projector, which is fine: it holds what the weights hold. So are tensors
    that no layer can have, by their names: of inputs and outputs that someone kept to compare with. What stands under
    the same first word as the weights counts as a layer's, and so does what ends as the names of layers' tensors do.
    """
    beside = {stored.folder / PROJECTOR, *stored.folder.glob("*.safetensors")} - set(stored.files)
    roots = {name.partition(".")[0] for name in stored.tensors}
    for file in sorted(file for file in beside if file.is_file()):
        weights = {
            name: tensor
            for name, tensor in read_file(file).items()
            if name.endswith(_OF_LAYERS) or name.partition(".")[0] in roots
        }
        changed = [name for name, tensor in weights.items() if not _is_held(tensor, stored.tensors.get(name))]
        if changed:
            raise MvlmError(
                f"{file} lies beside the weights, and {len(changed)} of its tensors are not theirs ({changed[0]}"
                f"{', …' if changed[1:] else ''}): if the model is to have them, merge it into the weights, as LLaVA's"
                " load_pretrained_model with --model-base and then save_pretrained do; if not, take the file away"
            )


def _is_held(tensor: Tensor, held: Tensor | None) -> bool:
    if held is None or held.shape != tensor.shape:
        return False
    if held.dtype == tensor.dtype:
        return torch.equal(held, tensor)
    return torch.allclose(held.float(), tensor.float(), rtol=1e-2, atol=1e-5)  # kept in another 16-bit type
