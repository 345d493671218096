"""Which metric scores which row."""

import pytest

from export.runtime.errors import MvlmError
from mvlm_core.data.pictures import PictureBytes
from mvlm_core.data.row import PicturePlace, Row, Turn, require_answers
from mvlm_core.scoring import Reference, read_metric
from mvlm_core.scoring.of_rows import metrics_like, metrics_of, score_row, scored_by


def row(name: str, *answers: str, task: str | None = None, metric: str | None = None, **turn) -> Row:
    asked = Turn((PicturePlace(0), "what?"), answers, **turn)
    return Row(name, (PictureBytes("k", b""),), (asked,), task, "g", "val", None, metric)


def test_a_rows_own_metric_comes_before_its_tasks_and_that_before_the_one_for_all():
    rows = [row("a", "3", task="count"), row("b", "3", task="count", metric="number:1"), row("c", "red")]
    found = metrics_of(rows, ["contains", "count=number"])
    assert {name: str(metric) for name, metric in found.of.items()} == {
        "a": "number", "b": "number:1", "c": "contains",
    }  # fmt: skip
    assert not found.guessed
    assert scored_by(found.facts()) == "scored by number (1 rows), number:1 (1 rows), contains (1 rows)"


def test_what_is_guessed_is_said():
    rows = [row("a", "red", task="colour"), row("b", "B", options=("red", "blue"), task="quiz"),
            row("c", "2", votes=("2", "two")), row("d", task="night")]  # fmt: skip
    found = metrics_of(rows)
    assert {name: str(metric) for name, metric in found.of.items()} == {
        "a": "exact", "b": "choice", "c": "vqa", "d": "agreement",
    }  # fmt: skip
    assert "guessed: exact for colour, choice for quiz, vqa, agreement for night (say it with" in scored_by(
        found.facts()
    )


def test_rows_without_answers_among_others_are_labelled_by_agreement_where_it_is_guessed():
    found = metrics_of([row("a", "red"), row("b")])
    assert {name: str(metric) for name, metric in found.of.items()} == {"a": "exact", "b": "agreement"}


def test_what_cannot_be_scored_is_refused_all_at_once():
    with pytest.raises(MvlmError) as error:
        metrics_of([row("a"), row("b", "maybe")], ["yes_no"])
    for says in ("2 rows cannot be scored", "id a: yes_no needs answers", "id b: yes_no needs an answer that begins"):
        assert says in str(error.value)
    with pytest.raises(MvlmError, match="names shape, and no row is of that task"):
        metrics_of([row("a", "red", task="colour")], ["shape=exact"])
    with pytest.raises(MvlmError, match="and 2 more"):
        metrics_of([row(str(n)) for n in range(10)], ["exact"])


def test_agreement_is_with_what_the_finest_scale_said():
    asked = row("a", "blue")
    assert score_row(asked, read_metric("agreement"), "Red", finest="red") == 1
    assert score_row(asked, read_metric("exact"), "Red", finest="red") == 0
    assert asked.reference == Reference(("blue",))


def test_a_question_that_nothing_answers_cannot_be_learned():
    require_answers([row("a", "red")])
    with pytest.raises(MvlmError, match=r"1 rows to train on have no answers \(id b\)"):
        require_answers([row("a", "red"), row("b")])


def test_other_rows_are_scored_as_the_labels_were_where_that_can_be():
    rows = [row("a", "3", task="count"), row("b", "red", task="colour")]
    said = ["count=number", "shape=f1", "colour=contains"]
    assert {name: str(metric) for name, metric in metrics_like(rows, said).of.items()} == {
        "a": "number", "b": "contains",
    }  # fmt: skip
    assert {str(metric) for metric in metrics_like(rows, ["number"]).of.values()} == {"exact"}
    assert metrics_like(rows, []) == metrics_of(rows)
