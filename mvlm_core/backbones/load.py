"""Towers and language models that are loaded by name: every tensor accounted for, nothing initialised in silence."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file, logging

from export.runtime.errors import MvlmError, listed
from mvlm_core.modeling.vision_towers import require_tower

from .processor_files import tower_settings
from .tensor_files import faults_of_loading

LANGUAGE_MODELS = ("llama", "qwen2", "qwen3", "smollm3")
# What a vision checkpoint holds besides its tower: the text half of CLIP and SigLIP, and what classifies pictures.
_BESIDES_A_TOWER = (
    "text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias", "classifier.", "head.",
    "vision_model.head.",
)  # fmt: skip
Told = Mapping[str, Any]


def vision_config(told: Told) -> PreTrainedConfig:
    """The configuration of the tower that is told: of a whole CLIP or SigLIP, its vision half's."""
    config = _config(told)
    config = getattr(config, "vision_config", config)
    require_tower(config, told.get("name", "vision"))
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False  # SigLIP's pooled picture, which nothing reads
    return config


def text_config(told: Told, **vocabulary: Any) -> PreTrainedConfig:
    """The configuration of the language model that is told; one that starts from nothing takes the `vocabulary`."""
    config = _config(told if "name" in told else {**told, **vocabulary})
    if config.model_type not in LANGUAGE_MODELS:
        raise MvlmError(
            f"{told.get('name', 'text')} is a {config.model_type}, and the language models that are trained here are"
            f" {', '.join(LANGUAGE_MODELS)}"
        )
    return config


def load_tower(told: Told, config: PreTrainedConfig) -> PreTrainedModel:
    return _load(AutoModel, told, config, _BESIDES_A_TOWER)


def load_language_model(told: Told, config: PreTrainedConfig) -> PreTrainedModel:
    return _load(AutoModelForCausalLM, told, config, ())


def load_tokenizer(told: Told) -> PreTrainedTokenizerFast:
    with _telling(told):
        tokenizer = AutoTokenizer.from_pretrained(**_place(told), padding_side="left")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise MvlmError(f"the tokenizer of {told['name']} is not a fast one: it needs a tokenizer.json")
    return tokenizer


def picture_settings(told: Told) -> dict[str, Any]:
    """What the preprocessor_config.json that lies beside a tower says; nothing, where there is none."""
    if "name" not in told:
        return {}
    place = _place(told)
    with _telling(told):
        file = cached_file(
            place.pop("pretrained_model_name_or_path"), "preprocessor_config.json",
            _raise_exceptions_for_missing_entries=False, **place,
        )  # fmt: skip
    return tower_settings(Path(file)) if file else {}


def _config(told: Told) -> PreTrainedConfig:
    with _telling(told):
        if "name" in told:
            return AutoConfig.from_pretrained(**_place(told))
        config = AutoConfig.for_model(**told)
    # transformers keeps a key that it does not know as it is, and nothing reads it.
    known, kept = AutoConfig.for_model(told["model_type"]).to_dict(), config.to_dict()
    if unknown := [key for key in told if key in kept and key not in known]:
        raise MvlmError(
            f"a {told['model_type']} has no {', '.join(_with_nearest(key, list(known)) for key in unknown)}: its keys"
            " are those of its configuration in transformers"
        )
    return config


def _with_nearest(key: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1)
    return f"{key} (did you mean {nearest[0]}?)" if nearest else key


def _place(told: Told) -> dict[str, Any]:
    """Where a part is, as transformers is told it. Nothing is fetched for a folder, and no code is run."""
    return {
        "pretrained_model_name_or_path": told["name"],
        "revision": told.get("revision", "main"),
        "local_files_only": Path(told["name"]).is_dir(),
        "trust_remote_code": False,
    }


def _load(kind: Any, told: Told, config: PreTrainedConfig, besides: tuple[str, ...]) -> PreTrainedModel:
    with _telling(told):
        part, loading = kind.from_pretrained(
            **_place(told), config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )  # fmt: skip
    if faults := faults_of_loading(part, loading, besides):
        raise MvlmError(f"tensors of {told['name']} that are not in order: {len(faults)}{listed(faults)}")
    return part


@contextmanager
def _telling(told: Told) -> Iterator[None]:
    """Turn what transformers says of a part that cannot be read into one line, and keep its tables off the terminal."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except (StrictDataclassError, OSError, TypeError, ValueError, KeyError, RuntimeError) as error:
        name = told.get("name", told.get("model_type"))
        reason = " ".join(str(error).split())[:300]
        raise MvlmError(f"{name} cannot be read ({reason}): check the name or the folder") from None
    finally:
        logging.set_verbosity(before)
