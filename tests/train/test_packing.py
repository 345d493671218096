"""The fast way against the slow obvious way: everything of a step in one pass against one row at a time."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.runtime.errors import MvlmError
from export.runtime.families import FAMILIES
from mvlm_core.data.pictures import PictureFile
from mvlm_core.data.row import PicturePlace, Row, Turn
from mvlm_core.modeling.chat_templates import TEMPLATES
from mvlm_core.modeling.losses import IGNORED_LABEL
from mvlm_core.train.packing import Block, Packer, block_mask, fill_rows, flex_mask, joined, mask_for
from mvlm_core.train.plan import Planned, group_rows
from tests.support.tiny import ANSWERS, QUESTIONS, SCALES, drawn_picture, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[PictureFile]:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        drawn_picture(i).save(folder / f"{i}.png")
    return [PictureFile(folder / f"{i}.png") for i in range(3)]


def row(name: str, pictures: Sequence[PictureFile], *turns: Turn) -> Row:
    return Row(name, tuple(pictures), turns, None, name, "train")


def asked(number: int, *before: PicturePlace) -> Turn:
    return Turn((*before, QUESTIONS[number]), (ANSWERS[number],))


FIRST, SECOND = PicturePlace(0), PicturePlace(1)


@pytest.fixture(scope="module")
def rows(pictures) -> dict[str, list[Row]]:
    one, two, three = pictures
    return {
        "questions of two pictures": [
            *(row(f"a{i}", [one], asked(i, FIRST)) for i in range(4)),
            *(row(f"b{i}", [two], asked(i, FIRST)) for i in range(2)),
        ],
        "several turns": [row("c", [three], asked(0, FIRST), asked(1), asked(2))],
        "two pictures in a row": [row(f"d{i}", [one, two], asked(i, FIRST, SECOND)) for i in range(2)],
        "a picture in a later turn": [row("f", [one, two], asked(0, FIRST), asked(1, SECOND))],
        "the same, twice": [row(f"g{i}", [one, two], asked(0, FIRST), asked(i, SECOND)) for i in range(2)],
        "words before the picture": [row("h", [one], Turn((QUESTIONS[0], FIRST, QUESTIONS[1]), ("red",)))],
        "text alone": [row("i", [], asked(0)), row("j", [], asked(1), asked(2))],
        "text and pictures": [row("k", [], asked(0)), row("l", [two], asked(3, FIRST))],
        "a system text": [replace(row("m", [one], asked(0, FIRST)), system="answer in one word")],
    }  # fmt: skip


def pack(rows: Sequence[Row], processor, scales: tuple[int, ...], *, running: bool = False) -> dict[str, Any]:
    items = [Planned(g, scales, np.arange(len(g.rows))[::-1], running) for g in group_rows(rows)]
    return Packer(processor, None, max_tokens=None)(items)


def read(model, batch: dict[str, Any], mask: Any = block_mask) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name not in ("segments", "blocks")}
    return model(**inputs, attention_mask=mask(batch["segments"], batch["blocks"]), use_cache=False).loss


def one_by_one(model, processor, rows: Sequence[Row], scales: Sequence[int]) -> torch.Tensor:
    """Each conversation at each scale as a row of its own, through the processor: nats and tokens added up by hand."""
    nats, tokens = torch.zeros(()), 0
    for conversation in rows:
        for scale in scales:
            images = [picture.read() for picture in conversation.pictures]
            one = processor(images=images or None, text=processor.render(conversation.messages()),
                            num_visual_tokens=[scale] * len(images))  # fmt: skip
            encoded = processor.encode(conversation.messages())
            supervised = [
                flag
                for id, flag in zip(encoded.ids, encoded.supervised, strict=True)
                for _ in range(scale if id == processor.image_token_id else 1)
            ]
            labels = one["input_ids"].masked_fill(~torch.tensor([supervised]), IGNORED_LABEL)
            logits = model(**one).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
            nats = nats + losses.sum()
            tokens += sum(supervised[1:])  # nothing predicts the first
    return nats / tokens


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


NAMES = (
    "questions of two pictures", "several turns", "two pictures in a row", "a picture in a later turn",
    "the same, twice", "words before the picture", "text alone", "text and pictures", "a system text",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_one_pass_equals_one_row_at_a_time_in_loss_and_gradient(rows, processor, family, name):
    model = tiny_model(family, processor=processor)  # in eval mode: batch statistics would differ, as they should
    slow = one_by_one(model, processor, rows[name], SCALES)
    expected = gradients(model, slow)
    fast = read(model, pack(rows[name], processor, SCALES))
    found = gradients(model, fast)
    assert fast.item() == pytest.approx(slow.item(), abs=1e-5)
    assert expected
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, atol=1e-5, rtol=1e-3)
    assert not any(found[extra].any() for extra in set(found) - set(expected))  # text alone: in the graph, and nothing


@pytest.mark.parametrize("running", [False, True], ids=["apart", "as one conversation"])
@pytest.mark.parametrize("name", ["questions of two pictures", "several turns", "text alone", "text and pictures",
                                  "two pictures in a row"])  # fmt: skip
def test_captions_in_one_pass_equal_one_at_a_time(rows, name, running):
    """`plain` shows no question: each caption of a picture begins right behind it, as those of COCO do."""
    processor = tiny_processor()
    processor.chat_template = processor.tokenizer.chat_template = TEMPLATES["plain"].text
    model = tiny_model(processor=processor)
    told = [joined(g.rows[::-1]) for g in group_rows(rows[name])] if running else rows[name]
    slow = one_by_one(model, processor, told, SCALES)
    expected = gradients(model, slow)
    fast = read(model, pack(rows[name], processor, SCALES, running=running))
    found = gradients(model, fast)
    assert fast.item() == pytest.approx(slow.item(), abs=1e-5)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, atol=1e-5, rtol=1e-3)


def test_running_questions_are_one_conversation(rows, processor):
    model = tiny_model(processor=processor)
    questions = rows["questions of two pictures"]
    conversations = [joined(group.rows[::-1]) for group in group_rows(questions)]
    slow = one_by_one(model, processor, conversations, [9])
    fast = read(model, pack(questions, processor, (9,), running=True))
    assert fast.item() == pytest.approx(slow.item(), abs=1e-5)
    assert fast.item() != pytest.approx(read(model, pack(questions, processor, (9,))).item(), abs=1e-4)


def test_flex_attention_sees_what_the_mask_shows(rows, processor):
    batch = pack(rows["questions of two pictures"], processor, SCALES)
    flex = flex_mask(batch["segments"], batch["blocks"])
    length = batch["segments"].shape[1]
    seen = torch.stack(
        [
            flex.mask_mod(torch.tensor(n), torch.tensor(0), torch.arange(length)[:, None], torch.arange(length)[None])
            for n in range(len(batch["segments"]))
        ]
    )
    assert torch.equal(seen, block_mask(batch["segments"], batch["blocks"])[:, 0])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_attention_function_reads_the_mask_alike(rows, processor, attention):
    model, questions = tiny_model(processor=processor), rows["questions of two pictures"]
    slow = one_by_one(model, processor, questions, SCALES)
    model.language_model.set_attn_implementation(attention)
    fast = read(model, pack(questions, processor, SCALES), mask=partial(mask_for, attention))
    assert fast.item() == pytest.approx(slow.item(), abs=1e-5)


def test_pictures_are_shown_once_for_all_their_questions(rows, processor):
    batch = pack(rows["questions of two pictures"], processor, SCALES)
    assert batch["pixel_values"].shape[0] == 2
    placeholders = int((batch["input_ids"] == processor.image_token_id).sum())
    assert placeholders == sum(batch["num_visual_tokens"]) == 2 * sum(SCALES)
    assert sorted(zip(batch["picture_of_run"], batch["num_visual_tokens"], strict=True)) == [
        (picture, scale) for picture in range(2) for scale in SCALES
    ]


def test_a_step_without_pictures_still_uses_the_tower(rows, processor):
    """Every process of a distributed run must touch the same weights, or the others wait for it."""
    model = tiny_model(processor=processor)
    found = gradients(model, read(model, pack(rows["text alone"], processor, (9,))))
    assert any(name.startswith("vision_tower") for name in found)
    assert any(name.startswith("connector") for name in found)


def test_blocks_fill_rows_as_long_as_the_longest():
    blocks = [Block((), 1, ids=[0] * length) for length in (3, 10, 4, 6, 2)]
    rows = [[len(block.ids) for block in row] for row in fill_rows(blocks)]
    assert rows == [[3, 2], [10], [4, 6]] or [sum(row) for row in rows] == [5, 10, 10]
    assert max(map(sum, rows)) == 10


def test_the_mask_lets_a_question_see_its_pictures_and_itself():
    mask = block_mask(torch.tensor([[0, 0, 1, 2, 0, 1]]), torch.tensor([[0, 0, 0, 0, 1, 1]]))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def test_a_conversation_that_cannot_be_cut_names_its_row(rows, processor):
    items = [Planned(group, (144,), np.arange(1), False) for group in group_rows(rows["several turns"])]
    with pytest.raises(MvlmError, match="id c: "):
        Packer(processor, None, max_tokens=20)(items)
    with pytest.raises(MvlmError, match=r"id c: .* more than the 20 positions"):
        Packer(processor, None, max_tokens=None, positions=20)(items)


def test_every_scale_of_a_cut_conversation_keeps_the_same_words(rows, processor):
    items = [Planned(group, SCALES, np.arange(1), False) for group in group_rows(rows["several turns"])]
    whole, cut = (Packer(processor, None, max_tokens=n)(items) for n in (None, 160))
    assert int((cut["labels"] != IGNORED_LABEL).sum()) < int((whole["labels"] != IGNORED_LABEL).sum())
    assert int((cut["input_ids"] == processor.image_token_id).sum()) == sum(SCALES)
    assert int((cut["labels"] != IGNORED_LABEL).sum()) % len(SCALES) == 0


def test_pictures_may_lie_anywhere(pictures, processor, tmp_path):
    assert Path(pictures[0].read()).is_file()
    other = tmp_path / "other.png"
    drawn_picture(9).save(other)
    batch = pack([row("z", [PictureFile(other)], asked(0, FIRST))], processor, (1,))
    assert batch["pixel_values"].shape[0] == 1
