"""What the rule for what is out of distribution costs on known tables, and how it is told."""

from dataclasses import replace

import pytest

from benchmarks.router import ood_rule, told
from benchmarks.router.__main__ import CASES
from router.fit.ood_rule import MOST


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ood_rule, "_ROWS", 1500)
        patch.setattr(ood_rule, "_TEST_ROWS", 1500)
        patch.setattr(ood_rule, "_MOVED_ROWS", 300)
        return ood_rule.measured(replace(CASES[0], d=8), 0.02)


def test_less_is_taken_where_the_whole_share_costs_right_answers(found):
    asked, taken = (found["other_rows"][how] for how in ("as asked", "as taken"))
    assert taken["least_p_value"] == found["fit"]["least_p_value"] < asked["least_p_value"] == 0.02
    assert max(found["fit"]["costs_as_asked"]) > MOST
    assert max(asked["costs"]) > max(taken["costs"])
    assert asked["ordinary"] > taken["ordinary"]


def test_farther_is_noticed_more_often_and_a_smaller_share_notices_less(found):
    asked, taken = (found["other_rows"][how]["noticed"] for how in ("as asked", "as taken"))
    assert list(asked.values()) == sorted(asked.values())
    assert asked["2"] > 0.5
    assert all(taken[by] <= asked[by] for by in asked)


def test_told(found):
    text = told.ood_rule({"asked": 0.02, "tables": {"smooth": found}})
    assert "2 % of ordinary rows may be taken" in text
    assert text.count("| smooth |") == 2
