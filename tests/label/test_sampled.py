"""A sample of the rows: each split and task by its share, the same rows again, and what interval that buys."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from export.runtime.artefact import read_artefact
from export.runtime.errors import MvlmError
from mvlm_core.label.sampled import sampled, worth
from tests.support.tiny import one_question, tiny_model, tiny_processor

SIZES = {("val", "a"): 100, ("val", "b"): 37, ("test", "a"): 60, ("test", "b"): 3}


def rows():
    return [
        one_question(
            f"{split}{task}{n}", Path(f"{split}{n}.png"), "what?", "this", task=task, group=f"{split}{n}", split=split
        )
        for (split, task), count in SIZES.items()
        for n in range(count)
    ]


def shares(some) -> Counter:
    return Counter((row.split, row.task) for row in some)


@pytest.mark.parametrize("most", [4, 5, 20, 67, 199])
def test_every_task_keeps_its_share(most):
    found = shares(sampled(rows(), most))
    assert found.total() == most
    for name, size in SIZES.items():
        assert found[name] >= 1
        assert abs(found[name] - most * size / 200) <= 1 or found[name] == 1


def test_the_same_rows_in_their_order_and_all_of_a_smaller_sample():
    whole = rows()
    small, large = sampled(whole, 40), sampled(whole, 120)
    assert sampled(whole, 40) == small
    assert [row for row in whole if row in small] == small
    assert {row.id for row in small} <= {row.id for row in large}
    other = sampled(whole[::-1], 40)
    assert {row.id for row in other} == {row.id for row in small}
    assert sampled(whole, None) == sampled(whole, 200) == sampled(whole, 999) == whole


def test_fewer_than_there_are_tasks():
    with pytest.raises(MvlmError, match="--max-rows 3 is fewer than the 4 tasks of the splits"):
        sampled(rows(), 3)


def test_what_it_buys():
    told = worth(sampled(rows(), 100), of=200)
    assert told.startswith("100 of 200 rows (")
    judged = len({row.group for row in sampled(rows(), 100) if row.split == "test"})
    assert f"the 95 % interval of {judged} pictures is about ±{100 * 1.96 * (0.2 / judged) ** 0.5:.1f} points" in told
    val = [row for row in rows() if row.split == "val"]
    assert "of 100 pictures" in worth(val, of=200)


def test_the_verb_labels_so_many_and_says_so(scenes, tmp_path, mvlm):
    processor = tiny_processor()
    tiny_model(processor=processor).save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    result = mvlm(
        "label", tmp_path / "run", "--rows", scenes, "--scales", "1,9", "--max-rows", 40, "--out", tmp_path / "labels"
    )
    assert result.exit_code == 0, (result.output, result.exc_info)
    assert "40 of " in result.output
    assert "the 95 % interval of" in result.output
    facts = read_artefact(tmp_path / "labels", "labels")
    assert facts["max_rows"] == 40
    assert facts["counts"]["rows"] == 40
