"""What each target's engine takes: a table of facts. Nothing else in this package asks for a target's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from export.runtime.errors import MvlmError

from .dialects import CacheForm, Dialect, FusedDialect, PrimitiveDialect, StandardDialect
from .grids import Numbers
from .recipe import HEAD, OTHERS, Recipe

PHASES = ("prefill", "decode")
PARTS = ("tower", "connector", "prefill", "decode")
FLOATS: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}
# The forms of layers in bundles whose manifest names none: what a precision stood for before it could be calibrated.
OLD_WORDS: dict[str, dict[str, dict[str, str]]] = {
    "fused": {
        "int8": {OTHERS: "dynamic8", HEAD: "8b32"}, "int4": {OTHERS: "4b32"}, "int4-fast": {OTHERS: "4b128"},
        "int4-128": {OTHERS: "4b128"},
    },
    "standard": {"int8": {OTHERS: "stored8"}, "int4": {OTHERS: "stored4"}},
}  # fmt: skip
# What the runtime opens a bundle's files with.
Provider = Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Choice:
    """Forms that the layers of a precision are chosen from, by what each costs this model (`export.rounding`).

    Attributes:
        forms: the cheapest first.
        unit: of the budget, `bits` a weight (scales included) or `time` of a prompt's product.
        mean: the most that a weight of the blocks may cost on average.
    """

    forms: tuple[str, ...]
    unit: Literal["bits", "time"]
    mean: float


@dataclass(frozen=True)
class Target:
    """A device's engine and what it accepts.

    Attributes:
        device: what it is, in a person's words.
        provider: what the runtime opens the files with there.
        most_positions: what a conversation may hold where the model could hold more and the cache has one size.
        dialect: the operators of the language model.
        cache: where a step's keys and values go.
        precisions: what each part may be asked for, its default first.
        floats: what is computed in where weights are integers.
        apart: prefill and decode may differ in precision, as two graphs over one cache.
        forbids: what cannot be asked for, and why.
        forms: of a precision, the forms of layers where they are others than `OLD_WORDS` has.
        ladder: what `--precision auto` tries, the smallest and fastest first.
        choices: of a precision, what calibration may choose the forms of layers from; the head keeps its own.
    """

    name: str
    device: str
    provider: Provider
    dialect: Literal["fused", "standard", "primitive"]
    cache: CacheForm
    precisions: Mapping[str, tuple[str, ...]]
    floats: str
    apart: bool
    forbids: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    choices: Mapping[str, Choice] = field(default_factory=dict)
    ladder: tuple[str, ...] = ()
    most_positions: int | None = None

    @property
    def engine_of_words(self) -> str:
        """Whose nodes multiply few bits: onnxruntime's own, or ONNX's."""
        return "fused" if self.dialect == "fused" else "standard"

    @property
    def engine(self) -> str:
        """Whose files are run: those of `tensorrt` become engines first, by `mvlm build`."""
        return "tensorrt" if self.provider.startswith("tensorrt") else "onnxruntime"

    def writer_dialect(self, positions: int) -> Dialect:
        """The dialect of the language model, for a cache of at most `positions`."""
        if self.dialect == "fused":
            return FusedDialect()
        kind = StandardDialect if self.dialect == "standard" else PrimitiveDialect
        return kind(self.cache, positions)

    def words(self, precision: str) -> Mapping[str, str]:
        """The forms of the language model's layers before calibration chooses others, as `Recipe` reads them."""
        known = {**OLD_WORDS[self.engine_of_words], **self.forms}
        return {OTHERS: "float"} if precision in FLOATS else known[precision]

    def product(self, precision: str) -> Recipe:
        """How linear layers of the language model are written without calibration."""
        return Recipe(self.words(precision))

    def floats_of(self, precision: str) -> np.dtype[Any]:
        """What a part of this precision computes in, and keeps its cache in."""
        return FLOATS.get(precision, FLOATS[self.floats])


def _each(tower: str, connector: str, decoder: str) -> dict[str, tuple[str, ...]]:
    language = tuple(decoder.split())
    return {
        "tower": tuple(tower.split()), "connector": tuple(connector.split()), "prefill": language, "decode": language,
    }  # fmt: skip


_NEW_NAME = "it is called int4-fast now"
# A head in 8 bits: it costs little, and what it loses is lost in every token. What `down_proj` reads holds the massive
# activations of real models (docs/precision.md), which one scale for a whole step cannot tell from the rest.
_CPU_FORMS = {
    "int8": {OTHERS: "dynamic8", "down_proj": "8b32h", HEAD: "8b64h"},
    "int4": {OTHERS: "4b32zh", HEAD: "8b64h"}, "int4-fast": {OTHERS: "4b128zh", HEAD: "8b128h"},
}  # fmt: skip
# In `int4` no block is so wide that a step for several conversations adds up in another order than for one.
_CPU_CHOICES = {
    "int8": Choice(("dynamic8", "8b128h", "8b32h"), "time", 1.3),
    "int4": Choice(("4b32zh", "8b64h"), "bits", 5.6),
    "int4-fast": Choice(("4b128zh", "4b64zh", "8b128h"), "bits", 4.9),
}
_NO_INT4_20 = "four-bit weights need opset 21, and TensorRT 10.3 reads opsets up to 20"
_NO_FLOAT32 = "TensorRT has no fused attention in single precision"
# A cache that is written by TensorScatter is allocated whole: this many positions, unless --max-length names another.
_STATIC_POSITIONS = 2048
# Versions by JetPack and operators by TensorRT version: NVIDIA's headers and bindings of each, see device/build.py.
TARGETS = {
    target.name: target
    for target in (
        Target(
            "ort-cpu", "any CPU, by onnxruntime", "cpu", "fused", "in place",
            _each("float32 int8", "float32", "float32 int8 int4 int4-fast"), "float32", apart=True,
            forbids={"int4-128": _NEW_NAME}, forms=_CPU_FORMS,
            choices=_CPU_CHOICES,
            ladder=("prefill=int8,decode=int4-fast", "prefill=int8,decode=int4", "int4", "int8", "float32"),
        ),
        Target(
            "ort-cuda", "an NVIDIA GPU, by onnxruntime", "cuda", "fused", "in place",
            _each("float16 float32", "float16 float32", "float16 float32 int4 int4-fast"), "float16", apart=True,
            ladder=("int4-fast", "int4", "float16"),
            forbids={"int4-128": _NEW_NAME, "int8": "onnxruntime has no fast 8-bit product for CUDA"},
        ),
        Target(
            "jetpack-6.2", "Jetson Orin, by TensorRT 10.3", "tensorrt", "primitive", "concat",
            _each("float16 float32", "float16 float32", "float16 float32 int8"), "float16", apart=False,
            ladder=("int8", "float16"), forbids={"int4": _NO_INT4_20},
        ),
        Target(
            "jetpack-7.2", "Jetson Orin or Thor, by TensorRT 10.16", "tensorrt", "standard", "scatter",
            _each("float16 float32", "float16 float32", "float16 int8 int4"), "float16", apart=False,
            ladder=("int4", "int8", "float16"), forbids={"float32": _NO_FLOAT32}, most_positions=_STATIC_POSITIONS,
        ),
        Target(
            "rtx", "an RTX machine, by TensorRT for RTX 1.7", "tensorrt-rtx", "standard", "scatter",
            _each("float16 float32", "float16 float32", "float16 int8 int4"), "float16", apart=False,
            ladder=("int4", "int8", "float16"), forbids={"float32": _NO_FLOAT32}, most_positions=_STATIC_POSITIONS,
        ),
        Target(
            "onnx", "any engine that reads ONNX's own operators", "cpu", "primitive", "concat",
            _each("float32 float16", "float32 float16", "float32 float16 int8"), "float32", apart=False,
            ladder=("int8", "float32"),
            forbids={"int4": "four-bit weights need opset 21, which many engines do not read"},
        ),
    )
}  # fmt: skip


def target(name: str) -> Target:
    """A target by name. Raises `MvlmError` naming all of them."""
    if name not in TARGETS:
        raise MvlmError(f"there is no target {name!r}: name one of {', '.join(TARGETS)}")
    return TARGETS[name]


@dataclass(frozen=True)
class Plan:
    """What a bundle is to be: for which target, in which precision each part, for how long a conversation.

    `words` are the forms of the language model's layers in each phase, as `Recipe` reads them.
    """

    target: Target
    precision: Mapping[str, str]
    positions: int
    words: Mapping[str, Mapping[str, str]]

    def recipe(self, phase: str, numbers: Mapping[str, Numbers] | None = None) -> Recipe:
        """How the linear layers of a phase are written, with the numbers that calibration found."""
        return Recipe(self.words[phase], numbers or {})

    @property
    def apart(self) -> bool:
        """Whether prefill and decode are two graphs."""
        return self.precision["prefill"] != self.precision["decode"]

    @property
    def floats(self) -> np.dtype[Any]:
        """What the language model computes in, and keeps its cache in."""
        return self.target.floats_of(self.precision["decode"])


def plan(name: str, precision: str | None, asked_positions: int | None, model_positions: int) -> Plan:
    """Everything asked for, checked. Left out: the target's default precision, and as many positions as model and
    target allow.

    Raises `MvlmError`: no such target, a precision it does not take, more positions than the model has.
    """
    asked_of = target(name)
    most = min(model_positions, asked_of.most_positions or model_positions)
    if asked_positions is not None and asked_positions > model_positions:
        raise MvlmError(f"--max-length {asked_positions}: the model was made for {model_positions} positions")
    chosen = parse_precision(precision, asked_of)
    words = {phase: asked_of.words(chosen[phase]) for phase in PHASES}
    if chosen["prefill"] != chosen["decode"] and not any(chosen[phase] in FLOATS for phase in PHASES):
        # One head, stored once: it multiplies a single position in both phases.
        words["prefill"] = {**words["prefill"], HEAD: words["decode"].get(HEAD, words["decode"][OTHERS])}
    return Plan(asked_of, chosen, asked_positions or most, words)


def parse_precision(text: str | None, asked_of: Target) -> dict[str, str]:
    """`decode=int4,prefill=int8` -> the precision of every part; parts that are left out have the target's default.

    One word alone stands for prefill and decode. Raises `MvlmError` naming everything that the target does not take.
    """
    chosen = {part: allowed[0] for part, allowed in asked_of.precisions.items()}
    wrong = []
    for item in filter(None, (piece.strip() for piece in (text or "").split(","))):
        part, _, precision = (piece.strip() for piece in item.rpartition("="))
        parts = (part,) if part else ("prefill", "decode")
        if part and part not in PARTS:
            wrong.append(f"{item} (there is no part {part!r}: {', '.join(PARTS)})")
            continue
        for part in parts:
            chosen[part] = precision
    for part, precision in chosen.items():
        allowed = asked_of.precisions[part]
        if precision not in allowed:
            why = asked_of.forbids.get(precision)
            wrong.append(f"{part}={precision} ({why if why else 'it takes ' + ', '.join(allowed)})")
    if wrong:
        raise MvlmError(f"{asked_of.name} does not take {'; '.join(wrong)}")
    if not asked_of.apart and chosen["prefill"] != chosen["decode"]:
        raise MvlmError(
            f"on {asked_of.name} prefill and decode are one graph, and were asked for as {chosen['prefill']} and"
            f" {chosen['decode']}: ask for one precision"
        )
    if asked_of.floats_of(chosen["prefill"]) != asked_of.floats_of(chosen["decode"]):
        raise MvlmError(
            f"prefill={chosen['prefill']} and decode={chosen['decode']} would keep their cache in different types, and"
            " it is one cache: ask for precisions that compute in the same floats"
        )
    return chosen
