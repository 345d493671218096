"""A run folder: which model it holds, and how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.runtime.artefact import sha256_file
from export.runtime.errors import MvlmError

if TYPE_CHECKING:
    from .model import MvlmForConditionalGeneration
    from .processing import MvlmProcessor

WEIGHTS, _TOKENIZER = "model.safetensors", "tokenizer.json"


def model_sha256(run: Path) -> str:
    """The hash that labels, router and bundle carry of the model they were made from: that of its weights.

    Raises `MvlmError` when `run` is not the folder of a trained model.
    """
    missing = [name for name in ("config.json", WEIGHTS) if not (run / name).is_file()]
    if missing:
        raise MvlmError(f"{run} is not a run, it holds no {' and no '.join(missing)}: name the folder of `mvlm train`")
    return sha256_file(run / WEIGHTS)


def load_run(run: Path) -> tuple[MvlmForConditionalGeneration, MvlmProcessor]:
    """The model of a run (float32, ready to answer) and its processor. Nothing is fetched.

    Raises `MvlmError` when `run` is no run, holds a model of another kind, weights that do not fill the model, or no
    tokenizer (as after the import of a checkpoint without one).
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    from . import model as nested

    model_sha256(run)
    if not (run / _TOKENIZER).is_file():
        raise MvlmError(
            f"{run} holds no {_TOKENIZER}, so words cannot be put to it: give its checkpoint one, import again"
        )
    show = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(run, local_files_only=True)
        if not isinstance(config, nested.MvlmConfig):
            raise MvlmError(f"{run} holds a {config.model_type} model, and only mvlm models are read: train one")
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            run, config=config, dtype="float32", local_files_only=True, output_loading_info=True
        )
        processor = AutoProcessor.from_pretrained(run, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0][:200]
        raise MvlmError(f"{run} cannot be loaded ({reason}): train it again") from None
    finally:
        if show:
            logging.enable_progress_bar()
    model, loading = loaded
    absent = sorted(loading["missing_keys"])
    if absent:
        raise MvlmError(f"the weights of {run} lack {len(absent)} tensors, {absent[0]} among them: train it again")
    return model.eval(), processor
