"""Labels of rows with a system text, with several pictures and with turns: as each alone, by processor and generate."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from export.runtime.errors import MvlmError
from mvlm_core.data.labelled import label_questions
from mvlm_core.data.reading import read_rows
from mvlm_core.label.sweep import Sweep, label
from tests.support.tiny import QUESTIONS, drawn_picture, tiny_model, tiny_processor

SCALES = (1, 4, 9)
BRIEF = {"role": "system", "content": "Be brief, you watch a street."}


def user(*parts: str) -> dict:
    return {
        "role": "user",
        "content": [
            {"type": "image", "image": part} if part.endswith(".png") else {"type": "text", "text": part}
            for part in parts
        ],
    }


def told(text: str) -> dict:
    return {"role": "assistant", "content": text}


ROWS = {
    "alone": [user("0.png", QUESTIONS[0]), told("red")],
    "system": [BRIEF, user("0.png", QUESTIONS[0]), told("red"), user(QUESTIONS[1]), told("a star")],
    "two": [BRIEF, user("1.png", "2.png", QUESTIONS[2]), told("blue")],
    "turns": [user("3.png", QUESTIONS[0]), told("red"), user("and", "4.png", QUESTIONS[3]), told("a moon")],
    "later": [
        BRIEF, user("1.png", QUESTIONS[0]), told("red"), user("4.png", "0.png", QUESTIONS[2]), told("blue"),
        user(QUESTIONS[1]), told("a star"),
    ],
    "behind": [user("2.png", "look", QUESTIONS[0]), told("red"), user(QUESTIONS[3]), told("a moon")],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    processor = tiny_processor()
    processor.default_scale = 4
    model = tiny_model(processor=processor).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for number in range(5):
        drawn_picture(number).save(folder / f"{number}.png")
    lines = [{"id": name, "messages": messages, "split": "val", "group": name} for name, messages in ROWS.items()]
    lines[0]["group"] = lines[1]["group"] = "0"
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def labelled(run, rows, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("labelled") / "labels", []
    sweep = Sweep(run[0], rows, SCALES, ("val",), max_new_tokens=8, pictures_per_part=3)
    facts = label(sweep, out, overwrite=False, progress=lambda done, whole: None, say=said.append)
    return out, facts, said


def one_by_one(run, row, scale: int) -> str:
    """The answer by `generate`, the picture in question at a scale and all others at the default."""
    _, model, processor = run
    whole = row.within.row if row.within else row
    scales = [processor.default_scale] * len(whole.pictures)
    scales[row.within.number if row.within else 0] = scale
    text = processor.render(whole.messages()[:-1], add_generation_prompt=True)
    asked = processor(images=[picture.read() for picture in whole.pictures], text=text, scale=scales)
    with torch.inference_mode():
        ids = model.generate(**asked, max_new_tokens=8, do_sample=False)[0, asked["input_ids"].shape[1] :]
    return processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_every_answer_is_that_of_one_by_one(run, rows, labelled):
    lines = pq.read_table(labelled[0] / "labels.parquet").to_pylist()
    found = {(line["id"], int(line["scale"])): line for line in lines}
    asked = label_questions(read_rows(rows))
    assert [row.id for row in asked] == ["alone", "system#0", "system#1", "two@0", "two@1", "turns@0", "turns@1",
                                       "later@0", "later@1", "later@2", "later@1#2", "later@2#2",
                                       "behind@0", "behind@0#1"]  # fmt: skip
    assert found.keys() == {(row.id, scale) for row in asked for scale in SCALES}
    for row in asked:
        for scale in SCALES:
            line = found[row.id, scale]
            assert line["prediction"] == one_by_one(run, row, scale)
            assert line["num_visual_tokens"] == scale  # of the picture in question
            assert line["answer"] == row.answers[0]
    features = pq.read_table(labelled[0] / "features.parquet")["id"].to_pylist()
    assert sorted(features) == sorted(row.id for row in asked)
    assert any(found["alone", m]["loss"] != found["system#0", m]["loss"] for m in SCALES)  # the text is read


def test_the_cost_is_said_before_it_starts(labelled):
    _, facts, said = labelled
    assert said == [
        "14 questions at 3 scales: 42 answers; 21 of them with one of several pictures at a scale and the others at 4"
        " (--beside), which read 54 pictures"
    ]
    assert facts["beside"] == 4


def refused(run, rows, tmp_path, **changes) -> str:
    with pytest.raises(MvlmError) as error:
        label(
            Sweep(**{"run": run[0], "rows": rows, "scales": SCALES, "splits": ("val",), **changes}), tmp_path / "x",
            overwrite=False, progress=lambda done, whole: None,
        )  # fmt: skip
    return str(error.value)


def test_what_is_refused(run, rows, tmp_path, mvlm):
    assert "cannot show a picture in 10 tokens" in refused(run, rows, tmp_path, beside=10)
    strict = tmp_path / "strict"
    processor = tiny_processor()
    processor.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system text') }}{% endif %}"
        + processor.chat_template
    )
    run[1].save_pretrained(strict)
    processor.save_pretrained(strict)
    assert "id system#0" in refused((strict,), rows, tmp_path)
    first = tmp_path / "first"  # shows one picture of a message
    processor.chat_template = tiny_processor().chat_template.replace("<image>", "{% if loop.first %}<image>{% endif %}")
    run[1].save_pretrained(first)
    processor.save_pretrained(first)
    assert "id two@0: the chat template shows 1 of 2 pictures" in refused((first,), rows, tmp_path)
    said = mvlm("label", run[0], "--rows", rows, "--scales", "1", "--splits", "val", "--beside", "3,4,9", "--out", "x")
    assert said.exit_code == 2
