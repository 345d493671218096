"""A run folder: which model it holds, and how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export.runtime.artefact import describe, read_artefact, sha256_file, sha256_json, write_json
from export.runtime.errors import CheckFailed, MvlmError, listed

if TYPE_CHECKING:
    from mvlm_core.modeling.model import MvlmConfig, MvlmForConditionalGeneration
    from mvlm_core.modeling.processing import MvlmProcessor

WEIGHTS, _TOKENIZER = "model.safetensors", "tokenizer.json"
INDEX = f"{WEIGHTS}.index.json"
# What a run was made from, and when it is whole the hashes of its weights; runs of an older mvlm have none.
_NAME = "run"
Precision = Literal["float32", "bfloat16"]
# As the weights lie in their files, which then stay mapped.
Stored = Literal["stored"]
_HALVES = {"F16": "float16", "BF16": "bfloat16"}


def weight_files(run: Path) -> list[Path]:
    """The weights of a run: one file, or an index and the shards that it names.

    Raises `MvlmError` when `run` is not the folder of a trained model, or lacks shards.
    """
    found = next(([run / name] for name in (WEIGHTS, INDEX) if (run / name).is_file()), [])
    missing = [name for name in ("config.json",) if not (run / name).is_file()] + ([] if found else [WEIGHTS])
    if missing:
        raise MvlmError(f"{run} is not a run, it holds no {' and no '.join(missing)}: name the folder of `mvlm train`")
    if found[0].name == INDEX:
        from mvlm_core.backbones.tensor_files import read_places

        found += [run / shard for shard in sorted(set(read_places(found[0]).values()))]
    return found


def model_sha256(run: Path) -> str:
    """The hash that labels, router and bundle carry of the model they were made from: that of its weights.

    Raises `MvlmError` when `run` is not the folder of a trained model, and `CheckFailed` when its weights are not those
    that were written.
    """
    hashes = _weight_hashes(run)
    told = read_run_facts(run).get("files", hashes)
    if changed := sorted(name for name in hashes if hashes[name] != told.get(name)):
        raise CheckFailed(
            f"{run} holds other weights than were written ({', '.join(changed)}): train it again, or, if you changed"
            f" them yourself, remove its {_NAME}.json"
        )
    return hashes[WEIGHTS] if len(hashes) == 1 else sha256_json(hashes)


def _weight_hashes(run: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in weight_files(run)}


def write_run_facts(run: Path, **facts: Any) -> None:
    """Say in run.json what a run is made from, and which weights it holds, as far as they are there."""
    whole = any((run / name).is_file() for name in (WEIGHTS, INDEX))
    write_json(run / f"{_NAME}.json", describe(_NAME, **facts, **({"files": _weight_hashes(run)} if whole else {})))


def read_run_facts(run: Path) -> dict[str, Any]:
    """What run.json says; nothing, where there is none. Raises `MvlmError` when it cannot be read."""
    return read_artefact(run, _NAME) if (run / f"{_NAME}.json").is_file() else {}


def run_config(run: Path) -> MvlmConfig:
    """The configuration of a run's model. Raises `MvlmError` when `run` is no run, or holds a model of another kind."""
    from transformers import AutoConfig

    from mvlm_core.modeling import model as nested

    from .config_sizes import require_sizes

    weight_files(run)
    try:
        require_sizes(run / "config.json")
        config = AutoConfig.from_pretrained(run, local_files_only=True, trust_remote_code=False)
    except MvlmError as error:
        raise MvlmError(f"{run} cannot be loaded ({error}), or train it again") from None
    except Exception as error:  # configurations that were edited make transformers stumble in its own ways
        raise MvlmError(f"{run} cannot be loaded ({_reason(error)}): train it again") from None
    if not isinstance(config, nested.MvlmConfig):
        raise MvlmError(f"{run} holds a {config.model_type} model, and only mvlm models are read: train one")
    return config


def load_processor(run: Path) -> MvlmProcessor:
    """The processor of a run. Raises `MvlmError` when `run` is no run, or holds no tokenizer."""
    from transformers import AutoProcessor

    run_config(run)
    if not (run / _TOKENIZER).is_file():
        raise MvlmError(
            f"{run} holds no {_TOKENIZER}, so words cannot be put to it: give its checkpoint one, import again"
        )
    try:
        processor = AutoProcessor.from_pretrained(run, local_files_only=True, trust_remote_code=False)
        _ = processor.image_processor.spec, processor.image_processor.view_spec  # whether they can be meant
        return processor
    except Exception as error:  # see above
        raise MvlmError(f"{run} cannot be loaded ({_reason(error)}): train it again") from None


def load_run(
    run: Path, *, device: str = "cpu", dtype: Precision | Stored = "float32"
) -> tuple[MvlmForConditionalGeneration, MvlmProcessor]:
    """The model of a run, ready to answer, and its processor. Nothing is fetched, and no code of the run is used.

    With `stored` its weights have the type that their files hold; float32 where those hold several.

    Raises `MvlmError` when `run` is no run, holds a model of another kind, weights that are not the model's name for
    name and shape for shape or are not finite, or no tokenizer (as after the import of a checkpoint without one); and
    for a device that is not there.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    from mvlm_core.backbones.tensor_files import faults_of_loading

    config = run_config(run)
    _require_device(device)
    processor = load_processor(run)
    show, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what it would print as a table is said below
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            run, config=config, dtype=_stored_type(run) if dtype == "stored" else dtype, local_files_only=True,
            output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:  # see above
        raise MvlmError(f"{run} cannot be loaded ({_reason(error)}): train it again") from None
    finally:
        logging.set_verbosity(verbosity)
        if show:
            logging.enable_progress_bar()
    model, loading = loaded
    if faults := faults_of_loading(model, loading):
        raise MvlmError(f"tensors of {run} that are not in order: {len(faults)}; train it again{listed(faults)}")
    return model.to(device).eval(), processor


def _stored_type(run: Path) -> str:
    from safetensors import safe_open

    held = set()
    for file in weight_files(run):
        if file.name != INDEX:
            with safe_open(file, "pt") as tensors:
                held |= {tensors.get_slice(name).get_dtype() for name in list(tensors.keys())}
    held -= {"I64", "I32", "U8", "BOOL"}  # counters, which are never rounded
    return _HALVES.get(held.pop(), "float32") if len(held) == 1 else "float32"


def _require_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MvlmError(
            f"the device {device} is not there ({_reason(error)}): use cpu, or cuda where there is one"
        ) from None


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it wants code of its own to be run, which is never done here"
    return " ".join(str(error).split())[:200] or type(error).__name__
