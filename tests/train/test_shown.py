"""What training shows on the way: a step in its bar, an evaluation in lines, an answer of the model as it stands."""

import sys

import click
from click import _termui_impl

from mvlm_core.data.reading import read_rows
from mvlm_core.progress import Bars
from mvlm_core.train.metrics_file import _facts
from mvlm_core.train.plan import group_rows
from mvlm_core.train.sample_answer import SampleAnswers, askable
from tests.support.bundles import pool_bundle, torch_answer


def test_a_step_is_said_with_what_it_read():
    line = {"loss": 2.3456, "lr": 2e-5, "tokens_per_s": 1234, "pictures_per_s": 3.5, "memory_mib": 1500}
    assert _facts(line) == "loss 2.346  lr 2.0e-05  1,234 tokens/s  1,500 MiB"
    assert _facts(line | {"tokens_per_s": 0, "memory_mib": None}) == "loss 2.346  lr 2.0e-05  3.5 pictures/s"


def test_a_bar_says_what_its_last_step_came_to_within_the_line(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(_termui_impl, "isatty", lambda stream: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with Bars() as bars:
        advance = bars.start_told("training, stage answers", 3)
        advance("loss 9.000")
        bars.say("above it")
        advance("loss 8.000" + "x" * 200)
        advance("loss 7.000")
    drawn = capsys.readouterr().out
    assert "\r\x1b[2Kabove it\n" in drawn
    drawn = click.unstyle(drawn)
    assert "loss 9.000" in drawn
    assert max(len(line) for part in drawn.split("\n") for line in part.split("\r")) <= 100


def test_the_answer_is_the_models_own():
    made = pool_bundle()
    rows = askable(group_rows(read_rows(made.rows)))
    asker = SampleAnswers(made.source.model.train(), made.source.processor, rows, 36)
    told = asker.ask(len(rows) + 1)
    assert made.source.model.training
    made.source.model.eval()
    wanted = torch_answer(made, made.picture(1), rows[1].question, 36, 24)
    assert told["prediction"] == made.source.processor.tokenizer.decode(wanted, skip_special_tokens=True).strip()
    assert (told["id"], told["answer"], told["scale"]) == (rows[1].id, "red", "36")
