"""What transformers calls the KV cache: `past_key_values` until 5.23, `cache` from 5.24 on. Only this file knows."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from export.runtime.errors import MvlmError

_OLD, _NEW = "past_key_values", "cache"
_NAME = _NEW if _NEW in {field.name for field in fields(BaseModelOutputWithPast)} else _OLD


def cache_argument(cache: Cache | None) -> dict[str, Cache | None]:
    """The keyword argument that hands a cache to a model: `model(ids, **cache_argument(cache))`."""
    return {_NAME: cache}


def cache_of(outputs: Any) -> Cache | None:
    """The cache in what a model of transformers returned."""
    return getattr(outputs, _NAME)


def given_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache that a caller handed over, by whichever of the two names. Raises `MvlmError` for two."""
    if cache is not None and past_key_values is not None:
        raise MvlmError("both cache and past_key_values are given, two names of one thing: give one")
    return past_key_values if cache is None else cache
