"""Which scales a training step shows its pictures at: policies are data, and all chance is a generator's. No torch.

A policy is a list, and each entry of it adds one scale to the step:

    [1, 9, 36, 144, 576]                                   every scale in each step (M3, arXiv 2405.17430)
    [{first: 2, last: 256, step: 2}]                       one a step, drawn from a range (MQT, arXiv 2405.19315)
    [256, 1, {first: 2, last: 255, spread: log}]           a sandwich: finest, coarsest, and one between
    [{mixture: [{any_of: [1, 4, 9]}, {first: 1, last: 144}], shares: [0.5, 0.5]}]
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from numpy.random import Generator
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from export.runtime.errors import MvlmError
from export.runtime.views.scale import Scale, ScaleWord, coarse_to_fine


def _read(word: Any) -> Any:
    """A scale as it is held; pydantic tells the fault of what is none."""
    if isinstance(word, bool) or not isinstance(word, int | str):
        raise ValueError("a scale is a number, or a text such as 16@4")
    try:
        return Scale.parse(word).word
    except MvlmError as error:
        raise ValueError(str(error)) from None


# A scale in a configuration.
Word = Annotated[int | str, BeforeValidator(_read)]


class _Draw(BaseModel):
    """Each kind gives the `chances` of its scales: a number for each scale, 1 together."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AnyOf(_Draw):
    """One scale of a list, each as likely as the others."""

    any_of: tuple[Word, ...] = Field(min_length=1)

    def chances(self) -> dict[ScaleWord, float]:
        return _normalised({scale: self.any_of.count(scale) for scale in self.any_of})


class Span(_Draw):
    """One scale between two ends, both among them: uniform, or uniform in the logarithm."""

    first: int = Field(gt=0)
    last: int = Field(gt=0)
    step: int = Field(1, gt=0)
    spread: Literal["uniform", "log"] = "uniform"

    @model_validator(mode="after")
    def _goes_up(self) -> Span:
        if self.last < self.first:
            raise ValueError(f"a span goes up, and this one goes from {self.first} to {self.last}")
        return self

    def chances(self) -> dict[ScaleWord, float]:
        scales = range(self.first, self.last + 1, self.step)
        even = self.spread == "uniform"
        return _normalised({m: 1.0 if even else math.log((m + self.step) / m) for m in scales})


class Mixture(_Draw):
    """Now one draw, now another, by their shares."""

    mixture: tuple[Draw, ...] = Field(min_length=1)
    shares: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _each_has_a_share(self) -> Mixture:
        if len(self.shares) != len(self.mixture):
            raise ValueError(f"{len(self.mixture)} draws need as many shares, and {len(self.shares)} were given")
        return self

    def chances(self) -> dict[ScaleWord, float]:
        mixed: dict[ScaleWord, float] = defaultdict(float)
        for draw, share in zip(self.mixture, self.shares, strict=True):
            for scale, chance in draw.chances().items():
                mixed[scale] += share * chance
        return _normalised(mixed)


def _kind_of(entry: Any) -> str | None:
    """An entry is known by its first key, so that its faults are told of that kind alone."""
    if isinstance(entry, _Draw):
        return type(entry).__name__
    if isinstance(entry, dict):
        kinds = {"any_of": "AnyOf", "first": "Span", "last": "Span", "mixture": "Mixture", "shares": "Mixture"}
        return next((kinds[key] for key in entry if key in kinds), None)
    return "number" if isinstance(entry, int | str) else None


_UNKNOWN = {
    "custom_error_type": "shown",
    "custom_error_message": "a scale, or a draw with the keys any_of, first and last, or mixture and shares",
}
_Drawn = Annotated[AnyOf, Tag("AnyOf")] | Annotated[Span, Tag("Span")] | Annotated[Mixture, Tag("Mixture")]
Draw = Annotated[_Drawn, Discriminator(_kind_of, **_UNKNOWN)]
Shown = Annotated[Annotated[Word, Tag("number")] | _Drawn, Discriminator(_kind_of, **_UNKNOWN)]
Mixture.model_rebuild()
# How pydantic names the kind of an entry when it tells where a fault is.
KINDS: dict[str, type[BaseModel] | type[int]] = {"number": int, "AnyOf": AnyOf, "Span": Span, "Mixture": Mixture}


def possible_scales(policy: Sequence[Shown]) -> set[ScaleWord]:
    """Every scale that a policy may show."""
    return {scale for entry in policy for scale in ([entry] if isinstance(entry, int | str) else entry.chances())}


def draw_steps(policy: Sequence[Shown], steps: int, random: Generator) -> list[tuple[ScaleWord, ...]]:
    """The scales of each step, ascending and each once: the numbers of the policy, and what is drawn beside them.

    A draw that has nothing left but scales already shown adds none.
    """
    numbers = {entry for entry in policy if isinstance(entry, int | str)}
    draws = [entry.chances() for entry in policy if not isinstance(entry, int | str)]
    if not numbers and len(draws) == 1:
        return [(scale,) for scale in _choice(draws[0], steps, random)]
    shown = []
    for _ in range(steps):
        taken = set(numbers)
        for chances in draws:
            left = {scale: chance for scale, chance in chances.items() if scale not in taken}
            taken.update(_choice(left, 1, random) if left else ())
        shown.append(tuple(coarse_to_fine(taken)))
    return shown


def _choice(chances: Mapping[ScaleWord, float], count: int, random: Generator) -> list[ScaleWord]:
    even = len(set(chances.values())) == 1
    weights = None if even else list(_normalised(chances).values())
    scales = list(chances)
    return [scales[number] for number in random.choice(len(scales), count, p=weights)]


def _normalised(chances: Mapping[ScaleWord, float]) -> dict[ScaleWord, float]:
    total = sum(chances.values())
    return {scale: chance / total for scale, chance in chances.items()}
