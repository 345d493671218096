"""Answers that must be JSON of some schema: which tokens may stand next, by llguidance.

Letters: V vocabulary.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.errors import MvlmError
from export.runtime.manifest import Manifest

Array = NDArray[np.float32]
# White space as Python writes it: where any may stand, a model may write it for ever.
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_KEPT = 32


class Allowed:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def masked(self, logits: Array) -> Array:
        """The logits (V,) with those of all other tokens at minus infinity."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=self._vocabulary, bitorder="little").astype(bool)  # (V,)
        self._require_in_order()
        return np.where(allowed[: len(logits)], logits, np.float32(-np.inf))

    def take(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token)
        self._require_in_order()

    @property
    def whole(self) -> bool:
        """Whether nothing more may follow."""
        return bool(self._matcher.is_stopped())

    def _require_in_order(self) -> None:
        if self._matcher.is_error():
            raise _bad(self._matcher.get_error())


class Grammars:
    """The schemas that answers of one bundle are held to. Safe to use from several threads."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._known: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def allowed(self, schema: str) -> Allowed:
        """The start of an answer to a JSON schema, spelled in JSON.

        Raises `MvlmError`: a schema that cannot be followed (`bad-schema`), or llguidance is not installed.
        """
        with self._lock:
            matcher = self._known.pop(schema, None) or self._compiled(schema)
            self._known[schema] = matcher
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return Allowed(matcher.deep_copy(), self._manifest.embedding.shape[0])

    def _compiled(self, schema: str) -> Any:
        matcher_of = self._library.LLMatcher
        try:
            grammar = matcher_of.grammar_from_json_schema(schema, overrides=_FORM)
            matcher = matcher_of(self._tokenizer, grammar, log_level=0)
        except ValueError as error:
            raise _bad(str(error)) from None
        if matcher.is_error():
            raise _bad(matcher.get_error())
        return matcher

    @cached_property
    def _library(self) -> Any:
        try:
            import llguidance
        except ModuleNotFoundError:
            raise MvlmError(
                'answers in JSON need llguidance, which is not installed: pip install "mvlm[json]"',
                code="no-llguidance",
            ) from None
        return llguidance

    @cached_property
    def _tokenizer(self) -> Any:
        text = self._manifest.path(self._manifest.tokenizer).read_text(encoding="utf-8")
        try:
            return self._library.LLTokenizer(
                text, n_vocab=self._manifest.embedding.shape[0], eos_token=sorted(self._manifest.stop_ids)
            )
        except ValueError as error:
            raise MvlmError(
                f"llguidance cannot read this bundle's tokenizer ({_short(str(error))}): ask for plain text",
                code="unsupported",
            ) from None


def _bad(reason: str) -> MvlmError:
    return MvlmError(f"the JSON schema cannot be followed ({_short(reason)}): change it", code="bad-schema")


def _short(text: str) -> str:
    return " ".join(text.split())[:160]
