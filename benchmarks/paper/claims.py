"""What the papers found, held against the cells: both figures, and a verdict that the intervals decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

import benchmarks.paper.theirs as theirs
from benchmarks.paper.cells import ODD, Family, nested, specialist
from benchmarks.paper.oracle import cross_sample_choices, mix_of
from benchmarks.paper.stats import Asked, Estimate, estimate
from benchmarks.paper.world import FINEST, SCALES

Expected = Literal["more", "no less", "the same"]
Verdict = Literal["agrees", "differs", "undecided"]
# Two cells that are closer than this count as the same.
MARGIN = 0.02
_COARSE, _QUARTER = SCALES[0], SCALES[-2]


@dataclass(frozen=True)
class Claim:
    """A difference that a paper reports. `theirs` is in parts of one, of other data and a far larger model."""

    point: int
    says: str
    source: str
    expected: Expected
    figure: Estimate
    theirs: float | None = None

    @property
    def verdict(self) -> Verdict:
        """`undecided` where the intervals allow both, which few seeds and few pictures often do."""
        low, high = self.figure.low, self.figure.high
        agrees = {"more": low > 0, "no less": low > -MARGIN, "the same": low > -MARGIN and high < MARGIN}[self.expected]
        if agrees:
            return "agrees"
        return "differs" if high < 0 or (self.expected == "the same" and low > 0) else "undecided"

    def line(self) -> str:
        """For a terminal."""
        told = "" if self.theirs is None else f"; theirs {100 * self.theirs:+.1f}"
        return f"{self.verdict:<10} {self.says}: {self.figure.points()}{told} ({self.source})"


@dataclass
class Found:
    """The finished cells by family and name, each a list over seeds."""

    cells: dict[tuple[str, str], list[Asked]] = field(default_factory=dict)

    def add(self, asked: Asked) -> None:
        self.cells.setdefault((asked.cell.family, asked.cell.name), []).append(asked)

    def of(self, family: str, name: str) -> list[Asked]:
        return self.cells.get((family, name), [])

    def pairs(self, one: tuple[str, str], other: tuple[str, str]) -> list[tuple[Asked, Asked]]:
        """Two cells of the same seed, for every seed that has both."""
        others = {asked.cell.seed: asked for asked in self.of(*other)}
        return [(asked, others[asked.cell.seed]) for asked in self.of(*one) if asked.cell.seed in others]


def difference(
    pairs: Sequence[tuple[Asked, Asked]], at: Sequence[int], other_at: Sequence[int] | None = None, kind: str = "all"
) -> Estimate | None:
    """One cell minus another, the mean over some scales; None where no seed has both."""
    if not pairs:
        return None
    rows = pairs[0][0].rows_of(kind)
    per_seed = [
        np.mean([a.at(m) - b.at(n) for m, n in zip(at, other_at or at, strict=True)], axis=0)[rows] for a, b in pairs
    ]
    return estimate(per_seed, pairs[0][0].groups[rows])


def over_specialists(
    found: Found, family: Family, scales: Sequence[int], *, short: bool = False, kind: str = "all"
) -> Estimate | None:
    """The one model for all scales minus those trained for each alone, the mean over some scales."""
    ours = {asked.cell.seed: asked for asked in found.of(family, nested(family))}
    alone = [{a.cell.seed: a for a in found.of(family, specialist(m, short=short))} for m in scales]
    seeds = sorted(set(ours).intersection(*alone))
    if not seeds:
        return None
    first = ours[seeds[0]]
    rows = first.rows_of(kind)
    per_seed = [
        np.mean([ours[s].at(m) - one[s].at(m) for m, one in zip(scales, alone, strict=True)], axis=0)[rows]
        for s in seeds
    ]
    return estimate(per_seed, first.groups[rows])


def nested_cells(found: Found, family: Family) -> list[Asked]:
    """A family's own one model, at the scales that all families have."""
    return [asked.on(SCALES) for asked in found.of(family, nested(family))]


def claims(found: Found) -> list[Claim]:
    """Every claim whose cells are there."""
    parts: tuple[Callable[[Found], Iterator[Claim | None]], ...] = (_nesting, _kinds, _ablations, _sampling, _oracle)
    return [claim for part in parts for claim in part(found) if claim]


def _claim(
    point: int, says: str, source: str, expected: Expected, figure: Estimate | None, theirs: float | None = None
) -> Claim | None:
    return Claim(point, says, source, expected, figure, theirs) if figure else None


def _nesting(found: Found) -> Iterator[Claim | None]:
    gaps = (theirs.M3_NESTED - theirs.M3_SPECIALISTS).mean(axis=1) / 100
    for says, scales, gap in (("fewer tokens", SCALES[:-1], gaps[1:]), (f"{FINEST} tokens", SCALES[-1:], gaps[:1])):
        yield _claim(
            1, f"pool: one model for all scales is no worse than one for each, same steps, at {says}", "M3 table 2",
            "no less", over_specialists(found, "pool", scales), float(gap.mean()),
        )  # fmt: skip
    gap = float(np.subtract(theirs.MQT_NESTED, theirs.MQT_SPECIALISTS).mean()) / 100
    trained = SCALES[1:]  # MQT draws even numbers alone
    yield _claim(
        1, "query: the same, at scales that are drawn", "MQT figure 1", "no less",
        over_specialists(found, "query", trained), gap,
    )  # fmt: skip
    yield _claim(
        1, "query: with equal total compute, one model is better than one for each", "no table", "more",
        over_specialists(found, "query", trained, short=True),
    )  # fmt: skip
    yield _claim(
        1, f"pool: with more steps it is no worse at {FINEST} tokens either", "M3 table 2", "no less",
        difference(found.pairs(("pool", "longer"), ("pool", f"longer-{FINEST}")), [FINEST]),
        float(gaps[0]),
    )  # fmt: skip
    yield _claim(
        1, "nested_pool, put in the place of pool behind its base, is as good, all scales together", "ours", "no less",
        difference(found.pairs(("nested_pool", "nested"), ("pool", "nested")), SCALES),
    )  # fmt: skip


def _kinds(found: Found) -> Iterator[Claim | None]:
    same = [(one, one) for one in found.of("pool", "nested")]
    tables = {"flat": "ScienceQA", "steep": "DocVQA"}
    rise = (theirs.M3_NESTED[0] - theirs.M3_NESTED[-1]) / 100
    for kind, benchmark in tables.items():
        expected: Expected = "the same" if kind == "flat" else "more"
        says = {"flat": "kinds that a glance answers need no more than one token",
                "steep": "kinds of detail gain from more"}[kind]  # fmt: skip
        gain = float(rise[6 if kind == "flat" else 3])
        yield _claim(2, f"pool: {says}", f"M3 table 2, {benchmark}", expected,
                     difference(same, [FINEST], [_COARSE], kind), gain)  # fmt: skip


def _ablations(found: Found) -> Iterator[Claim | None]:
    told = theirs.M3_TEXTVQA
    texts = {
        "spatial": ("average pooling beats taking every k-th patch, in training", "M3 table 6"),
        "sequential": ("average pooling beats taking the first patches, in training", "M3 table 6"),
        "drawn": ("all scales a step beat one drawn", "M3 table 8"),
        "frozen-language-model": ("training the language model helps", "M3 table 7"),
    }
    for name, (says, source) in texts.items():
        pairs = found.pairs(("pool", "nested"), ("pool", name))
        for place, scale in enumerate((FINEST, _COARSE)):
            ours, other = told["nested"][place], told[name][place]
            if ours is not None and other is not None:
                tokens = "one token" if scale == 1 else f"{scale} tokens"
                gain = (ours - other) / 100
                yield _claim(3, f"{says}, at {tokens}", f"{source}, TextVQA", "more", difference(pairs, [scale]), gain)
    yield _claim(
        3, "training the tower helps, all scales together", "M3 section 3; its code keeps it frozen", "more",
        difference(found.pairs(("pool", "trained-tower"), ("pool", "nested")), SCALES),
    )  # fmt: skip
    bare = theirs.M3_UNTRAINED
    yield _claim(
        3, "pooling only at inference falls behind training for it, at one token", "M3 table 4, MMBench", "more",
        difference(found.pairs(("pool", "nested"), ("pool", "base")), [_COARSE]),
        (bare["nested"][-1] - bare["average"][-1]) / 100,
    )  # fmt: skip
    for better, worse in (("spatial", "average"), ("average", "sequential")):
        cells = [("pool", "base" if name == "average" else f"untrained-{name}") for name in (better, worse)]
        yield _claim(
            3, f"only at inference, {better} sampling beats {worse}, at a quarter of the tokens", "M3 table 4, MMBench",
            "more", difference(found.pairs(cells[0], cells[1]), [_QUARTER]), (bare[better][1] - bare[worse][1]) / 100,
        )  # fmt: skip


def _sampling(found: Found) -> Iterator[Claim | None]:
    pairs = found.pairs(("query", "sandwich"), ("query", "uniform"))
    yield _claim(3, "query: a sandwich beats the uniform draw at one token, which that never trains", "ours", "more",
                 difference(pairs, [1]))  # fmt: skip
    yield _claim(3, "query: and costs nothing at all tokens", "ours", "no less", difference(pairs, [FINEST]))
    same = [(one, one) for one in found.of("query", "uniform")]
    beside = [side for m in ODD for side in (m - 1, m + 1)]
    yield _claim(
        3, "query: an odd m, never trained, is as good as the even ones beside it", "MQT, every m is allowed",
        "the same", difference(same, [m for m in ODD for _ in range(2)], beside),
    )  # fmt: skip


def _oracle(found: Found) -> Iterator[Claim | None]:
    gap = float((theirs.M3_ORACLE - theirs.M3_NESTED.max(axis=0)).mean()) / 100
    families: tuple[Family, ...] = ("pool", "query")
    for family in families:
        asked = nested_cells(found, family)
        if not asked:
            continue
        groups, cost = asked[0].groups, np.array(asked[0].cell.scales, float)
        best = int(np.mean([one.scores.mean(axis=0) for one in asked], axis=0).argmax())
        lucky = [one.scores.max(axis=1) - one.scores[:, best] for one in asked]
        yield _claim(4, f"{family}: the oracle is above the best fixed scale", "M3 table 2", "more",
                     estimate(lucky, groups), gap)  # fmt: skip
        if len(asked) > 1:
            cross_sample = [one.scores[np.arange(len(groups)), choice] - mix_of(one.scores, choice, cost)
                     for one, choice in zip(asked, cross_sample_choices(asked), strict=True)]  # fmt: skip
            yield _claim(4, f"{family}: without its luck it is above a mix of fixed scales of the same tokens",
                         "not in M3", "more", estimate(cross_sample, groups))  # fmt: skip
