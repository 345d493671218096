"""The benchmark of `auto`: sums that are written out, and the comparison at equal accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.runtime.auto import MODES
from benchmarks.runtime.policies import Point, World, compare, ms_at
from benchmarks.runtime.told import auto
from export.runtime import Runtime
from export.runtime.routing.costs import Composed
from export.runtime.routing.parts import Parts, Work
from export.runtime.routing.policy import Policy, Seen
from tests.support.bundles import pool_bundle
from tests.support.tiny import SCALES

LINE = ((1, 1.0), (1001, 1001.0))  # a millisecond a position
PARTS = Parts(1.0, ((1, 5.0),), LINE, LINE, ((1, 2.0),), picture=4.0, question=2.0, router=1.0)
WORK = {m: Work(1, 1, m, 10 + m, 4) for m in SCALES}
ANSWER, LOOK, CHOOSING, AGAIN = 3, 6.0, 7.0, 3.0


def world(*, nested: bool) -> World:
    """Two pictures, two questions each; every scale is right where it has more tokens than the row needs."""
    router = Runtime.load(pool_bundle().bundle, threads=1).router
    router = router.with_costs({m: PARTS.ms(WORK[m], ANSWER) + CHOOSING for m in SCALES}, "ms", CHOOSING)
    right = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 1]], float)
    seen = Seen(0.05 + 0.9 * right, np.zeros(4, bool))
    policy = Policy(router.costs, float(max(router.facts.costs)))
    groups = np.array(["a", "a", "b", "b"])
    return World(
        router, Composed(PARTS, PARTS, WORK, 10), policy, seen, right, groups, ANSWER, nested, may_settle=False
    )


def new(m: int) -> float:
    """A question about a picture that was looked at, at a scale that was not read: connector, positions, two tokens."""
    return m + 10 + m + 4


@pytest.mark.parametrize("nested", [False, True])
def test_fixed_scales_are_read_once_for_a_picture(nested):
    found = world(nested=nested)
    assert found.alone(("scale", 36)) == Point(0.75, LOOK + new(36), (0, 0, 0, 1, 0))
    assert found.in_turn(("scale", 36)).ms == pytest.approx((LOOK + new(36) + 10 + 4) / 2)


def test_choosing_pays_for_the_picture_once_and_for_what_was_not_read():
    found = world(nested=False)
    wanted = [1, 36, 4, 144]  # at a price of next to nothing: the cheapest that is right
    each = found.alone(("price", 1e-4))
    assert each.right == 1.0
    assert each.ms == pytest.approx(np.mean([LOOK + new(m) + CHOOSING for m in wanted]))
    told = found.in_turn(("price", 1e-4))
    assert told.right == 1.0
    assert told.ms == pytest.approx(
        np.mean([LOOK + new(1) + CHOOSING, new(36) + AGAIN, LOOK + new(4) + CHOOSING, new(144) + AGAIN])
    )
    # Coarse tokens begin the fine ones: the one that was read need not be read again.
    assert world(nested=True).in_turn(("price", 1e-4)).ms == pytest.approx(told.ms - (1 + 4) / 4)


def test_the_fewest_milliseconds_at_an_accuracy():
    points = [Point(0.5, 10.0), Point(0.9, 50.0), Point(0.8, 60.0)]
    assert ms_at(points, 0.4) == 10.0
    assert ms_at(points, 0.7) == pytest.approx(30.0)  # half of each
    assert ms_at(points, 0.95) is None
    auto_ways = [Point(0.5, 10.0), Point(0.9, 25.0)]
    told = compare(auto_ways, {1: points[0], 4: points[2], 9: points[1]})
    assert told["over_fixed"] == {"1": 1.0, "4": round(60 / (10 + 15 * 0.75), 3), "9": 2.0}
    assert told["over_mixes"]["least"] == 1.0
    assert told["over_mixes"]["most"] == 2.0
    assert told["over_finest_at_half_a_point_less"] == pytest.approx(50 / (10 + 15 * 0.395 / 0.4), abs=1e-3)


def test_what_falls_short_is_told_first():
    mode = {
        "auto": {"over_fixed": {"1": 0.97, "9": 2.5}, "over_finest_at_half_a_point_less": 2.6,
                 "over_mixes": {"least": 0.96, "least_at": 0.5, "most": 1.4, "most_at": 0.8, "reached": 1.0}},
        "always choosing": {"over_fixed": {"1": 0.8, "9": 2.4}, "over_finest_at_half_a_point_less": 2.5,
                            "over_mixes": {"least": 0.7, "least_at": 0.5, "most": 1.3, "most_at": 0.8, "reached": 1.0}},
    }  # fmt: skip
    found = dict.fromkeys(MODES, mode) | {
        "precision": "int8", "millions_of_multiplications_a_token": 134.5, "rows": 10, "pictures": 2,
        "load_before": 8.0, "load_after": 9.0, "whole_questions": {"a": {"error": 0.1}, "b": {"error": -0.3}},
    }  # fmt: skip
    said = auto(found)
    assert said.index("falls short") < said.index("| question") < said.index("always choosing")
    assert "0.96" in said
    assert "30 %" in said
