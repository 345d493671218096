"""The sizes that a config.json says, held to what can be meant before anything is built by them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.runtime.errors import MvlmError
from mvlm_core.backbones.tensor_files import read_json

# The most that is read of each size, far above what any published model has. All are at least one.
_MOST = {
    "vocab_size": 2**22, "hidden_size": 2**16, "hidden_sizes": 2**16, "mm_hidden_size": 2**16,
    "intermediate_size": 2**18, "num_hidden_layers": 2**10, "depths": 2**10, "num_attention_heads": 2**10,
    "num_key_value_heads": 2**10, "num_heads": 2**10, "head_dim": 2**13, "max_position_embeddings": 2**27,
    "patch_size": 2**10, "image_size": 2**14, "num_channels": 2**6, "grid_side": 2**7, "num_queries": 2**14,
    "pixel_shuffle": 2**6, "scale_factor": 2**6, "num_visual_tokens": 2**14,
}  # fmt: skip
_MOST_PATCHES = 2**9  # along a side
# Pairs whose product is of weights that every model with both has: it has at least as many bytes.
_TABLES = (("vocab_size", "hidden_size"), ("intermediate_size", "hidden_size"), ("num_hidden_layers", "hidden_size"))


def require_sizes(file: Path, *, with_weights: bool = True) -> None:
    """Raise `MvlmError`, naming all, for sizes in a config.json that no model has, or not the one beside it.

    `with_weights` says that the weights lie in its folder: what they are too small for is then refused, too.
    """
    told = read_json(file)
    held = sum(beside.stat().st_size for beside in file.parent.iterdir() if beside.is_file()) if with_weights else None
    faults = [fault for part in _objects(told) for fault in (*_faults(part), *_too_large(part, held))]
    if faults:
        raise MvlmError(f"{file} says sizes that its model cannot have: {'; '.join(faults[:8])}: get it again")


def _objects(told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An object and all that stand in it, however deep."""
    waiting = [told]
    while waiting:
        found = waiting.pop()
        yield found
        waiting += [value for value in found.values() if isinstance(value, dict)]


def _faults(told: dict[str, Any]) -> Iterator[str]:
    for key, most in _MOST.items():
        for value in _whole_numbers(told.get(key)):
            if not 1 <= value <= most:
                yield f"{key} is {_shown(value)}, and 1 to {most} are read"
    images, patches = _whole_numbers(told.get("image_size")), _whole_numbers(told.get("patch_size"))
    for image, patch in zip(images, patches, strict=False):
        if patch > 0 and image // patch > _MOST_PATCHES:
            yield f"image_size {_shown(image)} by patch_size {patch} is more than {_MOST_PATCHES} patches a side"


def _too_large(told: dict[str, Any], held: int | None) -> Iterator[str]:
    for keys in _TABLES:
        one, two = (told.get(key) for key in keys)
        if held is not None and type(one) is int and type(two) is int and min(one, two) > 0 and one * two > held:
            yield f"{keys[0]} {_shown(one)} by {keys[1]} {_shown(two)} is more than the {held} bytes of its folder hold"


def _whole_numbers(value: Any) -> list[int]:
    return [one for one in (value if isinstance(value, list) else [value]) if type(one) is int]


def _shown(number: int) -> str:
    """Python refuses to write numbers of thousands of digits."""
    return str(number) if number.bit_length() < 100 else "a number of more than 30 digits"
