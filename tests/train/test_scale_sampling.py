"""Which scales a step shows: policies as data, drawn by a seeded generator."""

from collections import Counter

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from mvlm_core.train.scale_sampling import Shown, draw_steps, possible_scales

POLICY = TypeAdapter(tuple[Shown, ...])


def drawn(policy: list, steps: int = 4000, seed: int = 0) -> list[tuple[int, ...]]:
    return draw_steps(POLICY.validate_python(policy), steps, np.random.default_rng(seed))


def shares(policy: list) -> dict[int, float]:
    counts = Counter(m for scales in drawn(policy) for m in scales)
    return {m: count / 4000 for m, count in counts.items()}


def test_every_scale_a_step():
    assert set(drawn([576, 1, 9, 144, 36])) == {(1, 9, 36, 144, 576)}


def test_one_of_a_list():
    found = shares([{"any_of": [1, 9, 36]}])
    assert found == {m: pytest.approx(1 / 3, abs=0.03) for m in (1, 9, 36)}
    assert {len(scales) for scales in drawn([{"any_of": [1, 9, 36]}])} == {1}


def test_a_span_is_uniform_in_the_scale_or_in_its_logarithm():
    even = shares([{"first": 2, "last": 256, "step": 2}])
    assert set(even) <= set(range(2, 257, 2))
    assert sum(share for m, share in even.items() if m <= 128) == pytest.approx(0.5, abs=0.03)
    log = shares([{"first": 1, "last": 255, "spread": "log"}])
    assert sum(share for m, share in log.items() if m < 16) == pytest.approx(0.5, abs=0.03)
    assert log[1] == pytest.approx(1 / 8, abs=0.02)


def test_a_mixture_keeps_its_shares():
    found = shares([{"mixture": [{"any_of": [1, 4]}, {"first": 100, "last": 199}], "shares": [3, 1]}])
    assert found[1] + found[4] == pytest.approx(0.75, abs=0.03)


def test_a_sandwich_holds_both_ends_and_something_between():
    policy = [256, 1, {"first": 1, "last": 256, "spread": "log"}, {"first": 1, "last": 256}]
    steps = drawn(policy, 300)
    assert all(scales[0] == 1 and scales[-1] == 256 and len(set(scales)) == 4 for scales in steps)
    assert all(list(scales) == sorted(scales) for scales in steps)
    assert len(set(steps)) > 200


def test_a_draw_with_nothing_left_adds_nothing():
    assert set(drawn([1, 4, {"any_of": [1, 4]}], 20)) == {(1, 4)}


def test_the_seed_decides():
    policy = [1, {"first": 2, "last": 99}]
    assert drawn(policy, 50, seed=3) == drawn(policy, 50, seed=3) != drawn(policy, 50, seed=4)


def test_every_scale_that_may_come_is_known_before():
    policy = [576, {"mixture": [{"any_of": [1, 9]}, {"first": 20, "last": 22}], "shares": [1, 1]}]
    assert possible_scales(POLICY.validate_python(policy)) == {576, 1, 9, 20, 21, 22}


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ([0], "0 is not a scale"),
        (["all"], "'all' is not a scale"),
        ([{"form": 1}], "a scale, or a draw with the keys"),
        ([{"first": 9, "last": 3}], "goes from 9 to 3"),
        ([{"any_of": []}], "at least 1 item"),
        ([{"any_of": [1], "of": 2}], "Extra inputs"),
        ([{"mixture": [{"any_of": [1]}], "shares": [1, 2]}], "1 draws need as many shares, and 2 were given"),
        ([{"mixture": [{"first": 0, "last": 2}], "shares": [1]}], "greater than 0"),
    ],
)
def test_what_is_no_policy(policy, message):
    with pytest.raises(ValidationError, match=message):
        POLICY.validate_python(policy)
