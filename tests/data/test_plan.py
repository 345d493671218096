"""The run of steps: all the chance of a stage, drawn beforehand."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from export.runtime.errors import MvlmError
from mvlm_core.data.row import Row, Turn
from mvlm_core.train.plan import Plan, Stream, group_rows
from mvlm_core.train.stages import StageConfig
from tests.support.tiny import one_question


def rows(pictures: int, questions: int = 3) -> list[Row]:
    return [
        one_question(f"{i}-{q}", Path(f"{i}.png"), "what?", "that", task=f"task{q}", group=str(i), split="train")
        for i in range(pictures)
        for q in range(questions)
    ]


def stage(**told) -> StageConfig:
    return StageConfig(**{"name": "a", "steps": 50, "pictures": 2} | told)


def test_rows_about_the_same_pictures_are_a_group():
    text = [Row(f"t{i}", (), (Turn(("hello",), ("you",)),), None, "t", "train") for i in range(2)]
    groups = group_rows([*rows(3), *text, *rows(1)])
    assert [len(group.rows) for group in groups] == [6, 3, 3, 1, 1]


def test_a_plan_is_the_seed_s():
    groups = group_rows(rows(7))
    told = stage(questions=1, running_share=0.5, task_weights={"task0": 20.0})
    plan, again, other = (Plan(groups, (1, 9), told, seed=seed) for seed in (5, 5, 6))
    assert len(plan) == 100
    assert plan.schedule == again.schedule != other.schedule
    assert [item.group for item in plan] == [item.group for item in again]
    assert {item.scales for item in plan} == {(1,), (9,)}
    assert {item.running for item in plan} == {True, False}
    assert all(len(item.order) == 1 for item in plan)
    assert sum(item.order[0] == 0 for item in plan) > 80  # the first question of each is of the heavy task
    for step in range(50):
        assert {(plan[n].scales, plan[n].running) for n in (2 * step, 2 * step + 1)} == {
            (plan.schedule.scales[step], plan.schedule.running[step])
        }


def test_epochs_show_every_picture_as_often():
    plan = Plan(group_rows(rows(6)), (1,), stage(steps=None, epochs=2.0), seed=0)
    assert set(Counter(item.group.pictures for item in plan).values()) == {2}


def test_a_policy_of_the_stage_goes_before_the_scales_of_the_run():
    plan = Plan(group_rows(rows(2)), (1, 9), stage(show=(4, 36)), seed=0)
    assert {item.scales for item in plan} == {(4, 36)}


def test_a_stream_is_shuffled_grouped_and_without_end():
    def opened():
        return iter(rows(5))

    stream = Stream(opened, (1, 9), stage(steps=20), seed=3)
    items, again = list(stream), list(Stream(opened, (1, 9), stage(steps=20), seed=3))
    assert len(items) == 40
    assert [item.group for item in items] == [item.group for item in again]
    assert all(len(item.group.rows) == 3 for item in items)
    assert len({item.group.pictures for item in islice(items, 20)}) == 5
    assert [item.scales for item in items[::2]] == stream.schedule.scales


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_read_by_workers_is_the_same_stream(workers):
    """Each worker has the whole data set before it, and would show all of it anew."""
    stream = Stream(lambda: iter(rows(5)), (1, 9), stage(steps=5, pictures=4, accumulate=2), seed=3)

    def batches(workers: int) -> list[list[str]]:
        loader = DataLoader(stream, batch_size=2, num_workers=workers, collate_fn=list)
        return [[f"{item.group.rows[0].id} {item.scales} {item.order}" for item in batch] for batch in loader]

    assert batches(workers) == batches(0)
    assert len(batches(0)) == 10


def test_a_stream_of_nothing_and_one_without_an_end():
    with pytest.raises(MvlmError, match="holds no rows of the split train"):
        next(iter(Stream(lambda: iter(()), (1,), stage(), seed=0)))
    with pytest.raises(MvlmError, match="say steps, not epochs"):
        Stream(lambda: iter(()), (1,), stage(steps=None, epochs=1.0), seed=0)
