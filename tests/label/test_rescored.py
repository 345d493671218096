"""Labels scored anew: what they would have been, had they been labelled by the other metric."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from export.runtime.artefact import write_json
from export.runtime.errors import MvlmError
from mvlm_core.label.rescored import rescored
from mvlm_core.label.sweep import Sweep, label
from tests.support.labels_maker import quick
from tests.support.tiny import QUESTIONS, drawn_picture

_SCORED = ["id", "task", "scale", "sample", "metric", "score", "prediction", "answer"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Two tasks, and as many pictures as a router wants at least."""
    folder = tmp_path_factory.mktemp("rows")
    told = []
    for number in range(24):
        drawn_picture(number).save(folder / f"{number}.png")
        row = {"image": f"{number}.png", "split": "test" if number % 2 else "val", "answers": ["red", "a red one"]}
        told += [row | {"id": f"{number}-{task}", "task": task, "question": QUESTIONS[n]}
                 for n, task in enumerate(("colour", "count"))]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    return folder


def labelled(run: Path, rows: Path, out: Path, *metrics: str) -> Path:
    swept = Sweep(run, rows, (1, 9), ("val", "test"), max_new_tokens=3, metrics=metrics, patches=False)
    label(swept, out, overwrite=False, progress=lambda done, whole: None)
    return out


@pytest.fixture(scope="module")
def by_exact(run, rows, tmp_path_factory) -> Path:
    return labelled(run, rows, tmp_path_factory.mktemp("labels") / "labels", "exact")


def test_by_the_same_metric_nothing_changes(by_exact):
    table, told = rescored(by_exact, ["exact"])
    assert table.equals(pq.read_table(by_exact / "labels.parquet"))
    assert told["metrics"] == json.loads((by_exact / "labels.json").read_text())["metrics"]


def test_by_another_they_are_what_they_would_have_been(by_exact, run, rows, tmp_path):
    told = pq.read_table(labelled(run, rows, tmp_path / "labels", "agreement") / "labels.parquet")
    table, facts = rescored(by_exact, ["agreement"])
    assert table.select(_SCORED).to_pylist() == told.select(_SCORED).to_pylist()
    assert table["loss"].null_count == table["probability"].null_count == len(table)  # of another reference answer
    assert facts["rescored"] == facts["metrics_said"] == ["agreement"]
    lenient, _ = rescored(by_exact, ["anls"])
    assert lenient["loss"].equals(pq.read_table(by_exact / "labels.parquet")["loss"])
    assert set(lenient["metric"].to_pylist()) == {"anls"}


def test_tasks_that_are_not_named_keep_their_metric(by_exact):
    table, facts = rescored(by_exact, ["colour=f1"])
    by = set(zip(table["task"].to_pylist(), table["metric"].to_pylist(), strict=True))
    assert ("colour", "f1") in by
    assert {metric for task, metric in by if task != "colour"} == {"exact"}
    assert facts["rescored"] == ["exact", "colour=f1"]
    assert rescored(by_exact, facts["rescored"])[0].equals(table)


def test_what_cannot_be_scored_anew_is_refused(by_exact, tmp_path):
    with pytest.raises(MvlmError, match="choice needs options"):
        rescored(by_exact, ["choice"])
    changed = shutil.copytree(by_exact, tmp_path / "changed")
    pq.write_table(pa.table({"id": ["a"]}), changed / "references.parquet")
    with pytest.raises(MvlmError, match=r"references.parquet is missing or was changed"):
        rescored(changed, ["f1"])
    facts = json.loads((changed / "labels.json").read_text())
    del facts["files"]["references.parquet"]
    write_json(changed / "labels.json", facts)
    with pytest.raises(MvlmError, match="keeps no references"):
        rescored(changed, ["f1"])


def test_a_router_is_fitted_and_judged_by_what_it_was_told(by_exact, tmp_path, mvlm):
    out = tmp_path / "router"
    with quick():
        fitted = mvlm("fit-router", by_exact, "--metric", "agreement", "--out", out)
        assert fitted.exit_code == 0, fitted.output
        judged = mvlm("report", out, "--out", tmp_path / "report")
    assert judged.exit_code == 0, judged.output
    for said in (fitted.output, judged.output):
        assert "scored by agreement (" in said
    assert json.loads((out / "router.json").read_text())["labelled"]["rescored"] == ["agreement"]
    both = mvlm("fit-router", by_exact, "--metric", "f1", "--target", "agreement", "--out", tmp_path / "other")
    assert both.exit_code == 2
    assert "--metric has nothing to do: name one of the two" in both.output
