"""What each scale costs on this device: read from what `mvlm bench` left in the bundle, and put in a router's place.

A measurement lies in `bench/<device>/bench.json` of the bundle, under the name of the provider and the machine that it
was made on. Another machine finds nothing under its own name, and keeps the router's costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.runtime.artefact import read_artefact
from export.runtime.errors import MvlmError
from export.runtime.machine import device_name, machine
from export.runtime.views.scale import Scale, ScaleWord

from .parts import Parts, Work

NAME = "bench"


class UnusedCosts(UserWarning):
    """This machine was measured, and not with the provider and threads that are asked for."""


@dataclass(frozen=True)
class Composed:
    """The parts of a question, as half of them take and as nine of ten take at most, and what `costs` are composed of.

    `work` is a question about a picture that nobody has looked at, by scale: the one that was measured. Of what it
    reads, `around` positions are the question and what else stands around the picture.
    """

    usual: Parts
    most: Parts
    work: dict[Any, Work]
    around: int


@dataclass(frozen=True)
class CostTable:
    """Milliseconds of a question about a new picture at each scale of a bundle, ascending. With tiles, about a picture
    of the size of the one that was measured.

    Attributes:
        costs: what a router weighs; never falling from one scale to the next, and the same up to `floor`.
        floor: the scale below which fewer tokens save nothing on this device.
        answer_tokens: how many tokens of answer `costs` include.
        look_ms: looking at a picture, as nine of ten take at most; the same whatever the scale.
        first_token_ms: from there to the first token of the answer, as nine of ten take at most.
        token_ms: each further token, as nine of ten take at most.
        router_ms: what of each cost is the router and its features.
        composed: what costs of any question are composed of; None of a measurement of before there was that.
    """

    costs: dict[Any, float]
    floor: ScaleWord
    answer_tokens: int
    look_ms: float
    first_token_ms: dict[Any, float]
    token_ms: dict[Any, float]
    router_ms: float = 0.0
    composed: Composed | None = None

    def answer_ms(self, scale: ScaleWord) -> float:
        """A question about a picture that has been looked at, until the last of `answer_tokens`, nine times of ten."""
        return self.first_token_ms[scale] + (self.answer_tokens - 1) * self.token_ms[scale]


def bench_folder(bundle: Path, device: str) -> Path:
    return bundle / "bench" / device


def other_bench(bundle: Path, provider: str, threads: int | None) -> str | None:
    """A line for a person where this machine was measured, and not as it is asked: nothing of that is then weighed.

    None where there is a measurement of what is asked, or none of this machine.
    """
    device, here = device_name(provider, threads), machine()
    if bench_folder(bundle, device).exists():
        return None
    found = []
    for file in sorted(bundle.glob(f"bench/*/{NAME}.json")):
        with suppress(MvlmError):  # of what is not weighed, no more is asked than whether it is of use
            facts = read_artefact(file.parent, NAME)
            if facts.get("machine") == here:
                found.append(_setting(str(facts.get("provider")), facts.get("threads")))
    if not found:
        return None
    asked = _setting(provider, threads)
    return (
        f"costs measured with {' and with '.join(found)} are not used with {asked}: ask as it was measured, or run"
        f" `mvlm bench {bundle} {asked}`"
    )


def _setting(provider: str, threads: int | None) -> str:
    return f"--provider {provider}" + ("" if threads is None else f" --threads {threads}")


def read_costs(bundle: Path, device: str, bundle_sha256: str) -> CostTable | None:
    """What was measured of this bundle on `device` (`machine.device_name`), or None when nothing was.

    Raises `MvlmError` when the measurement is of another bundle, or not in order.
    """
    folder = bench_folder(bundle, device)
    if not folder.exists():
        return None
    facts = read_artefact(folder, NAME)
    if facts.get("bundle_sha256") != bundle_sha256:
        raise MvlmError(f"{folder} was measured on another bundle: run `mvlm bench {bundle}` again", code="stale-bench")
    try:
        return _table(facts)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:120]
        raise MvlmError(
            f"{folder / 'bench.json'} is not in order ({reason}): run `mvlm bench {bundle}` again"
        ) from None


def _table(facts: dict[str, Any]) -> CostTable:
    composed = _composed(facts) if facts["format_version"] > 1 else None
    before = facts.get("router_ms", {}).values()  # where parts were not measured yet
    table = CostTable(
        costs=_by_scale(facts["costs"]),
        floor=_word(facts["floor"]),
        answer_tokens=int(facts["answer_tokens"]),
        look_ms=_milliseconds(facts["look_ms"]["p90"]),
        first_token_ms=_by_scale({m: at["first_token"]["p90"] for m, at in facts["scales"].items()}),
        token_ms=_by_scale({m: at["token"]["p90"] for m, at in facts["scales"].items()}),
        router_ms=(
            composed.usual.choosing_ms(picture_seen=False)
            if composed
            else sum(_milliseconds(at["p50"]) for at in before)
        ),
        composed=composed,
    )
    values = list(table.costs.values())
    if values != sorted(values) or table.floor not in table.costs:
        raise ValueError("costs must not fall from one scale to the next, and the floor is one of the scales")
    return table


def _composed(facts: dict[str, Any]) -> Composed:
    usual, most = (
        Parts.from_json(facts["parts"], lambda at, name=name: _milliseconds(at[name]))  # type: ignore[misc]
        for name in ("p50", "p90")
    )
    work = {_word(m): Work(**{name: int(count) for name, count in of.items()}) for m, of in facts["work"].items()}
    if set(work) != set(map(_word, facts["costs"])):
        raise ValueError("what is to be done is not said of every scale")
    if facts["format_version"] > 2:
        return Composed(usual, most, work, int(facts["around"]))
    one = next(iter(work.values()))  # of before there were tiles: a picture was its tokens
    return Composed(usual, most, work, one.read - one.tokens)


def _by_scale(values: Mapping[str, Any]) -> dict[Any, float]:
    """Ascending: numbers of tokens by themselves, and with tiles in the order of the file, that of their costs."""
    found = [(_word(scale), _milliseconds(value)) for scale, value in values.items()]
    return dict(found if any(isinstance(scale, str) for scale, _ in found) else sorted(found))


def _word(text: Any) -> ScaleWord:
    try:
        return Scale.parse(text).word
    except MvlmError as error:
        raise ValueError(str(error)) from None


def _milliseconds(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{number} milliseconds")
    return number
