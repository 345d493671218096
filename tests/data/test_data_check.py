"""`mvlm data check`: what it says of a data set, and every fault that it finds."""

import json
from pathlib import Path

import click
import numpy as np
import pytest
import yaml

from export.runtime.errors import MvlmError
from mvlm_core.data.check import check_tokens, unlike_rows
from mvlm_core.data.pictures import PictureFile
from mvlm_core.data.row import PicturePlace, Row, Turn
from mvlm_core.data.show import coloured, lengths
from tests.conftest import rewrite_rows
from tests.support.tiny import drawn_picture, tiny_processor

SCALES = (1, 9, 36)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def row(
    name: str, question: str = "what colour is the star?", *, pictures: int = 1, turns: int = 1, system=None
) -> Row:
    places = tuple(PicturePlace(i) for i in range(pictures))
    first = Turn((*places, question), ("red",))
    more = (Turn(("and?",), ("blue",)),) * (turns - 1)
    sources = tuple(PictureFile(Path(f"{i}.png")) for i in range(pictures))
    return Row(name, sources, (first, *more), None, name, "train", system)


def checked(rows, processor, max_tokens=None):
    return check_tokens(rows, processor, SCALES, max_tokens, lambda done: None)


def test_lengths_are_those_of_the_processor(processor):
    rows = [
        row("a", pictures=0),
        row("b", turns=2),
        row("c", "what? " * 20, pictures=2),
        *(row(f"d{i}") for i in range(40)),
    ]
    report = checked(rows, processor)
    for scale in SCALES:
        slow = [
            processor(
                text=processor.render(r.messages()), images=[drawn_picture()] * len(r.pictures), num_visual_tokens=scale
            )["input_ids"].shape[1]
            for r in rows
        ]  # fmt: skip
        found = report.lengths[scale]
        assert (found.median, found.longest, found.longest_id) == (sorted(slow)[21], max(slow), "c")
        assert np.mean(np.asarray(slow) <= found.most_rows) >= 0.95 > np.mean(np.asarray(slow) < found.most_rows)
    assert report.faults == []


def test_rows_that_do_not_fit(processor):
    short, many = row("short"), row("many", pictures=3)
    long_question, long_answer = row("question", "what " * 200), row("answer")
    long_answer = Row("answer", (), (Turn(("why?",), ("because " * 200,)),), None, "g", "train")
    report = checked([short, many, long_question, long_answer], processor, 80)
    assert report.shortened == 1
    assert [fault.split(":")[0] for fault in report.faults] == ["id many", "id question"]
    assert "without leaving out a picture" in report.faults[0]
    assert "without leaving out every answer" in report.faults[1]
    assert "1 rows are longer than max_tokens, 80" in lengths(report, 80)[-1]


def test_a_row_with_nothing_supervised():
    processor = tiny_processor()
    processor.chat_template = processor.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    report = checked([row("a")], processor)
    assert report.faults == ["id a: nothing is supervised: the chat template marks no answer of it"]


def test_a_row_that_the_template_refuses():
    processor = tiny_processor()
    processor.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system text') }}{% endif %}"
        + processor.chat_template
    )
    report = checked([row("a"), row("b", system="Be brief.")], processor)
    assert report.faults == ["id b: the chat template refuses this conversation: no system text"]
    assert report.lengths[1].longest_id == "a"
    with pytest.raises(MvlmError, match="no system text"):
        processor.encode(row("b", system="Be brief.").messages())


def test_what_is_supervised_is_green_and_between_marks(processor):
    shown = row("a", "a <end>\x1b[31m\nb", turns=2)
    text = coloured(shown, processor.encode(shown.messages()), processor)
    assert click.unstyle(text) == (
        "id a\n  <user>[0.png] a <end>\ufffd[31m\u23ceb<assistant>\u2039 red<end>\u203a"
        "<user> and?<assistant>\u2039 blue<end>\u203a"
    )
    assert click.style("\u2039 red<end>\u203a", fg="green", bold=True) in text
    assert click.style("[0.png]", fg="cyan") in text
    assert click.style("<user>", dim=True) in text
    assert click.style("<end>", dim=True) not in text


def test_a_long_text_is_shown_with_its_ends(processor):
    shown = row("a", "start " + "long " * 500 + "end")
    text = coloured(shown, processor.encode(shown.messages()), processor)
    assert "start long" in text
    assert "long end" in text
    assert " ... " in text
    assert len(text) < 700


def test_rows_to_look_at_are_unlike():
    rows = [*(row(str(i)) for i in range(20)), row("two", pictures=2), row("none", pictures=0), row("turns", turns=2)]
    assert [r.id for r in unlike_rows(rows, 4)] == ["0", "two", "none", "turns"]
    assert len(unlike_rows(rows, 8)) == 8
    assert unlike_rows(rows, 0) == []


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = []
    for i in range(4):
        drawn_picture(i).save(tmp_path / f"{i}.png")
        lines.append({"id": f"r{i}", "image": f"{i}.png", "question": "what is it?", "answers": ["it"],
                      "split": "train" if i < 2 else "test"})  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_data_check_opens_every_picture(folder, mvlm):
    good = mvlm("data", "check", folder)
    assert good.exit_code == 0, good.output
    assert "4 rows about 4 pictures: 2 train, 2 test" in good.output
    assert "name one with --config" in good.output
    assert good.output.endswith(f"next: mvlm init {folder} --demo\n")
    (folder / "0.png").write_bytes(b"")
    (folder / "3.png").write_bytes((folder / "1.png").read_bytes())
    bad = mvlm("data", "check", folder)
    assert bad.exit_code == 1
    assert "id r0" in bad.output
    assert "cannot be read as a picture" in bad.output
    assert "the same picture in several splits" in bad.output
    assert "Traceback" not in bad.output


@pytest.fixture
def config(scenes, folder) -> Path:
    tree = yaml.safe_load((scenes.parent / "train.yaml").read_text()) | {"rows": "."}
    (folder / "train.yaml").write_text(yaml.safe_dump(tree))
    return folder / "train.yaml"


def test_data_check_with_a_configuration_counts_tokens(folder, config, mvlm):
    bare = mvlm("data", "check")  # train.yaml is here, and says which rows
    assert bare.exit_code == 0, bare.output
    for says in ("at scale 144 ", "(id r0)", "<user>[0.png] what is it?<assistant>\u2039 it<end>\u203a"):
        assert says in bare.output
    assert bare.output.endswith("next: mvlm train\n")
    config.rename(folder / "other.yaml")
    named = mvlm("data", "check", "--config", "other.yaml", "--show", "0")
    assert "at scale 144 " in named.output
    assert "<user>" not in named.output
    assert named.output.endswith("next: mvlm train other.yaml\n")
    other = mvlm("data", "check", "rows.jsonl", "--config", "other.yaml")
    assert other.output.endswith(f"next: mvlm train other.yaml rows={folder / 'rows.jsonl'}\n")


def test_data_check_names_repeated_ids_of_llava(folder, mvlm):
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "it"}]
    (folder / "a.json").write_text(json.dumps([{"id": "7", "image": "0.png", "conversations": said}] * 2))
    result = mvlm("data", "check", "a.json")
    assert "1 rows have the id of a row before them" in result.output


def test_faults_of_rows_come_all_at_once(folder, mvlm):
    def spoil(rows):
        return [rows[0] | {"id": "r1"}, rows[1], rows[2] | {"image": "absent.png"}, rows[3] | {"answers": []}]

    result = mvlm("data", "check", rewrite_rows(folder, spoil))
    assert result.exit_code == 2
    for says in ("3 faults", "id r1: 2 rows have it", "no picture", "line 4, id r3: no answers"):
        assert says in result.output


def test_data_check_bounds_rows_as_the_tightest_stage_does(folder, config, mvlm):
    tree = yaml.safe_load(config.read_text())
    for stage, most in zip(tree["stages"], (500, 150), strict=True):
        stage["max_tokens"] = most
    config.write_text(yaml.safe_dump(tree))
    result = mvlm("data", "check")
    assert result.exit_code == 1
    assert "id r0: 152 tokens at scale 144 do not fit into 150" in result.output
    assert "max_tokens, 150, and lose text" in result.output
