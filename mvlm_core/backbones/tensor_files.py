"""The tensors of a checkpoint folder, in whichever files they stand. Nothing that a file holds is ever run."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from export.runtime.errors import MvlmError, listed

from .pickle_size import require_small_pickle

# Where both kinds lie side by side they hold the same, and safetensors is read.
_KINDS = ("model.safetensors", "pytorch_model.bin")
_JSON_LIMIT_BYTES = 64 * 2**20
_HEADER_LIMIT_BYTES = 8 * 2**20  # some 80,000 tensors in one file


@dataclass(frozen=True)
class Stored:
    """A folder's tensors by name, mapped from the disk rather than read, and the files that they stand in."""

    folder: Path
    tensors: dict[str, Tensor]
    files: list[Path]


def read_tensors(folder: Path) -> Stored:
    """All tensors of a folder, from safetensors or pickle, in one file or in shards with an index.

    Raises `MvlmError` when there are no weights, when shards and index disagree, and for a file that is broken or
    holds more than tensors.
    """
    for kind in _KINDS:
        if (folder / f"{kind}.index.json").is_file():
            return _read_shards(folder, folder / f"{kind}.index.json")
        if (folder / kind).is_file():
            return Stored(folder, read_file(folder / kind), [folder / kind])
    raise MvlmError(f"{folder} holds no weights, neither {' nor '.join(_KINDS)} nor an index of shards: check the path")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises `MvlmError` when it is absent, far too large, or anything else."""
    if not file.is_file():
        raise MvlmError(f"there is no {file}: get the whole checkpoint")
    if file.stat().st_size > _JSON_LIMIT_BYTES:
        raise MvlmError(f"{file} is larger than such a file can be: get it again")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MvlmError(f"{file} is not valid JSON ({error}): get it again") from None
    if not isinstance(value, dict):
        raise MvlmError(f"{file} is not a JSON object: get it again")
    return value


@contextmanager
def telling(file: Path) -> Iterator[None]:
    """Turn whatever a configuration that makes no sense leads to into one line."""
    try:
        yield
    except MvlmError:
        raise
    except Exception as error:  # transformers, and who reads a setting, stumble in their own ways
        reason = " ".join(str(error).split())[:160]
        raise MvlmError(f"{file} does not describe a model ({reason}): get it again") from None


def faults_of(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    constants: Mapping[str, Tensor],
    progress: Callable[[int], None],
) -> list[str]:
    """What is wrong with a set of tensors, a line each, where `shapes` says which there must be, and of what shape.

    `constants` are tensors that old checkpoints carry and models compute, by the end of their names: they may be
    there, and must then be what is computed.
    """
    faults = [f"{name} is missing" for name in shapes if name not in tensors]
    for name, tensor in tensors.items():
        known = next((value for end, value in constants.items() if name.endswith(end)), None)
        if name in shapes:
            faults += _faults_of_weight(name, tensor, shapes[name])
        elif known is None:
            faults.append(f"{name} is left over")
        elif tensor.numel() != known.numel() or not torch.allclose(tensor.ravel().float(), known.ravel(), rtol=1e-2):
            faults.append(f"{name} is not what the configuration computes")
        progress(1)
    return faults


def faults_of_loading(part: nn.Module, loading: Mapping[str, Any], besides: tuple[str, ...] = ()) -> list[str]:
    """What is not in order with a model that transformers has loaded, a line each; nothing starts anew in silence.

    `loading` is its `output_loading_info`; tensors whose names begin as one of `besides` may be left over.
    """
    broken = [name for name, tensor in part.state_dict().items() if not _is_finite(tensor)]
    return [
        *(f"{name} is missing" for name in sorted(loading["missing_keys"])),
        *(f"{name} is left over" for name in sorted(loading["unexpected_keys"]) if not name.startswith(besides)),
        *(
            f"{name} has shape {tuple(stored)} instead of {tuple(shape)}"
            for name, stored, shape in sorted(loading["mismatched_keys"])
        ),
        *(f"{name} holds NaN or infinite values" for name in broken),
    ]


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _faults_of_weight(name: str, tensor: Tensor, shape: torch.Size) -> list[str]:
    if tensor.shape != shape:
        return [f"{name} has shape {tuple(tensor.shape)} instead of {tuple(shape)}"]
    if not tensor.is_floating_point():
        return [f"{name} holds {str(tensor.dtype).removeprefix('torch.')} instead of floating-point numbers"]
    return [] if _is_finite(tensor) else [f"{name} holds NaN or infinite values"]


def read_places(index: Path) -> dict[str, str]:
    """Which shard each tensor stands in. Raises `MvlmError` when the index says none, or shards that are not there."""
    folder, places = index.parent, read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise MvlmError(f"{index} maps no tensors to shards: get it again")
    names = sorted({str(shard) for shard in places.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise MvlmError(f"{index} names shards outside its folder, {outside[0]} among them: do not use this checkpoint")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise MvlmError(f"{folder} lacks {len(missing)} of {len(names)} shards: get {', '.join(missing)}")
    return {str(name): str(shard) for name, shard in places.items()}


def _read_shards(folder: Path, index: Path) -> Stored:
    places = read_places(index)
    names = sorted(set(places.values()))
    tensors: dict[str, Tensor] = {}
    faults = []
    for shard in names:
        held = read_file(folder / shard)
        named = {name for name, place in places.items() if place == shard}
        faults += [f"{name} is listed in {shard}, which does not hold it" for name in sorted(named - set(held))]
        faults += [f"{name} stands in {shard}, and the index does not say so" for name in sorted(set(held) - named)]
        tensors |= held
    if faults:
        raise MvlmError(f"{index} and its shards disagree, {len(faults)} times; get them again{listed(faults)}")
    return Stored(folder, tensors, [folder / name for name in names])


def _require_header(file: Path) -> None:
    """Raise `MvlmError` for more names of tensors than a model has: each of them takes memory and time before any
    weight is read. The first 8 bytes say how long they are together."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
    if _HEADER_LIMIT_BYTES < length < file.stat().st_size:
        raise MvlmError(f"{file} begins with {length} bytes of names, and no model's weights do: get it again")


def read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises `MvlmError` when it is broken, or holds more than tensors."""
    try:
        if file.suffix == ".safetensors":
            _require_header(file)
            return load_file(file)
        require_small_pickle(file, most_bytes=_HEADER_LIMIT_BYTES)
        value = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError:
        raise MvlmError(
            f"{file} is broken, or a pickle with more in it than tensors, which could run code: it is not opened; get"
            " the weights as safetensors"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).split("\n")[0][:120]
        raise MvlmError(f"{file} cannot be read ({reason}): get it again") from None
    if not isinstance(value, dict) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise MvlmError(f"{file} holds something else than tensors by name: get the model's weights")
    larger = [name for name, tensor in value.items() if tensor.nbytes > tensor.untyped_storage().nbytes()]
    if larger:
        raise MvlmError(f"{file} says of {larger[0]!s:.80} that it is larger than what is stored of it: get it again")
    return value
