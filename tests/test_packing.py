"""The fast way against the slow obvious way: questions packed behind one picture against one row at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ANSWERS, QUESTIONS, drawn_picture, one_question, tiny_model, tiny_processor

from mvlm_core.config import StageConfig
from mvlm_core.dataset import Batch, Packer, Picture, Plan, Planned, block_mask, group_pictures
from mvlm_core.losses import answer_loss
from mvlm_core.model import IGNORED_LABEL
from mvlm_core.processing import turn

SCALE = 9


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Picture]:
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i, count in enumerate((4, 2)):
        drawn_picture(i).save(folder / f"{i}.png")
        rows += [
            one_question(
                f"{i}-{q}", folder / f"{i}.png", QUESTIONS[q], ANSWERS[q], task=f"task{q}", group=str(i), split="train"
            )
            for q in range(count)
        ]
    return group_pictures(rows)


def pack(pictures, processor, *, running: bool) -> Batch:
    items = [Planned(i, SCALE, np.arange(len(p.rows))[::-1], running) for i, p in enumerate(pictures)]
    return Batch(**Packer(pictures, processor, None)(items))


def one_by_one(model, processor, conversations) -> torch.Tensor:
    """Each conversation as a row of its own, through the processor: nats and tokens are added up by hand."""
    nats, tokens = torch.zeros(()), 0
    for path, messages in conversations:
        row = processor(images=path, text=processor.render(messages), num_visual_tokens=SCALE)
        encoded = processor.encode(messages)
        place = encoded.ids.index(processor.image_token_id)
        supervised = encoded.supervised[:place] + [False] * SCALE + encoded.supervised[place + 1 :]
        labels = row["input_ids"].masked_fill(~torch.tensor([supervised]), IGNORED_LABEL)
        logits = model(**row).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        nats = nats + losses.sum()
        tokens += sum(supervised)
    return nats / tokens


@pytest.mark.parametrize("family", ["pool", "query"])
@pytest.mark.parametrize("running", [False, True])
def test_packed_equals_one_row_at_a_time_in_loss_and_gradient(pictures, processor, family, running):
    model = tiny_model(family, processor=processor)  # in eval mode: batch statistics would differ, as they should
    answer_loss(model, pack(pictures, processor, running=running)).backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    conversations: list[tuple[Path, list]] = []
    for picture in pictures:
        rows = picture.rows[::-1]
        turns = [turn(r.question, r.answers[0], with_picture=not running or i == 0) for i, r in enumerate(rows)]
        merged = [[message for t in turns for message in t]] if running else turns
        conversations += [(picture.source.read(), messages) for messages in merged]
    slow = one_by_one(model, processor, conversations)
    slow.backward()

    fast = answer_loss(model, pack(pictures, processor, running=running))
    assert fast.item() == pytest.approx(slow.item(), abs=1e-5)
    assert packed
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(packed[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_block_mask_lets_a_question_see_the_picture_and_itself():
    mask = block_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


def test_the_plan_holds_all_the_chance(pictures):
    weights = {"task0": 20.0}
    stage = StageConfig(
        name="a", loss="answers", steps=50, pictures=2, questions=1, running_share=0.5, task_weights=weights
    )
    plan, again = (Plan(pictures, (1, 9), stage, seed=5) for _ in range(2))
    other = Plan(pictures, (1, 9), stage, seed=6)
    assert len(plan) == 100
    assert plan.scale_of_step == again.scale_of_step != other.scale_of_step
    assert [item.picture for item in plan.items] == [item.picture for item in again.items]
    assert {item.scale for item in plan.items} == {1, 9}
    assert {item.running for item in plan.items} == {True, False}
    assert all(len(item.order) == 1 for item in plan.items)
    assert sum(item.order[0] == 0 for item in plan.items) > 80  # the first question of each is of the heavy task
    for step in range(50):
        first, second = plan[2 * step], plan[2 * step + 1]
        assert (
            (first.scale, first.running) == (second.scale, second.running) == (plan.scale_of_step[step], first.running)
        )
