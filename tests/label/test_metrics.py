"""How answers are scored, in labels: by whatever metric the rows or the verb say, and without any answer."""

import json
import math

import pyarrow.parquet as pq
import pytest

from export.runtime.artefact import describe, read_artefact, write_json
from mvlm_core.data.reading import read_rows
from mvlm_core.label.sweep import Sweep, label, new_tokens
from tests.support.tiny import tiny_processor


@pytest.fixture(scope="module")
def asked(scenes, tmp_path_factory):
    """The test rows of the scenes: some as they are, some voted on, some only asked."""
    folder = tmp_path_factory.mktemp("asked")
    lines = [json.loads(line) for line in (scenes / "rows.jsonl").read_text().splitlines()]
    rows = [line | {"image": str(scenes / line["image"])} for line in lines if line["split"] == "test"]
    for n, row in enumerate(rows):
        if n % 3 == 1:
            row["votes"], row["task"] = [row["answers"][0]] * 3 + ["else"], "voted"
        if n % 3 == 2:
            del row["answers"]
            row["task"] = "only asked"
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def lines_of(folder):
    return pq.read_table(folder / "labels.parquet").to_pylist()


def test_each_row_is_scored_by_its_metric_and_the_finest_scale_stands_for_answers(run, asked, tmp_path):
    out = tmp_path / "labels"
    label(Sweep(run, asked, (1, 9), ("test",), max_new_tokens=4), out, overwrite=False, progress=lambda *_: None)
    lines = lines_of(out)
    facts = read_artefact(out, "labels")
    assert facts["metrics_guessed"]["voted"] == "vqa"
    assert facts["metrics_guessed"]["only asked"] == "agreement"
    assert sum(facts["metrics"].values()) == len({line["id"] for line in lines})
    finest = {line["id"]: line for line in lines if line["num_visual_tokens"] == 9}
    assert {line["metric"] for line in lines} == {"exact", "vqa", "agreement"}
    for line in lines:
        own = finest[line["id"]]
        assert 0 <= line["score"] <= 1
        assert math.isfinite(line["loss"])
        assert 0 <= line["probability"] <= 1
        if line["metric"] == "agreement":
            assert line["answer"] == own["prediction"]
            assert line["score"] == (line["prediction"].strip().lower() == own["prediction"].strip().lower())
            assert own["probability"] == pytest.approx(own["confidence"], rel=1e-4)


def test_a_metric_said_to_the_verb_is_in_the_labels_and_printed(run, asked, tmp_path, mvlm):
    result = mvlm("label", run, "--rows", asked, "--scales", "1,9", "--splits", "test", "--metric", "agreement:f1",
                  "--metric", "voted=contains", "--max-new-tokens", "3", "--out", tmp_path / "labels")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "scored by" in result.output
    assert "agreement:f1 (" in result.output
    assert "guessed" not in result.output
    assert {line["metric"] for line in lines_of(tmp_path / "labels")} == {"agreement:f1", "contains"}
    assert read_artefact(tmp_path / "labels", "labels")["max_new_tokens"] == 3


def test_no_verdict_on_routers_where_nothing_is_right(run, asked, tmp_path, mvlm):
    rows = tmp_path / "rows.jsonl"
    told = [json.loads(line) | {"answers": ["a sentence that no tiny model ever says to anybody"]} for line in
            asked.read_text().splitlines()]  # fmt: skip
    rows.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "votes"}) + "\n" for row in told))
    result = mvlm("label", run, "--rows", rows, "--scales", "1,9", "--splits", "test", "--metric", "exact",
                  "--out", tmp_path / "labels")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "HARDLY AN ANSWER IS RIGHT" in result.output
    assert "pointless" not in result.output


def test_answers_may_be_as_long_as_those_of_the_rows(asked, tmp_path):
    processor, rows = tiny_processor(), read_rows(asked)
    assert new_tokens(processor, rows) == 16
    assert new_tokens(processor, [row for row in rows if not row.answers]) == 64
    first = json.loads(asked.read_text().splitlines()[0])
    (tmp_path / "rows.jsonl").write_text(json.dumps(first | {"answers": ["red star " * 20]}) + "\n")
    assert new_tokens(processor, read_rows(tmp_path / "rows.jsonl")) > 16


def test_training_rows_are_labelled_only_when_asked_for_by_name(run, scenes, tmp_path, mvlm):
    (run / "train.yaml").write_text((scenes.parent / "train.yaml").read_text().replace("rows: rows", f"rows: {scenes}"))
    refused = mvlm("label", run, "--scales", "1,9", "--splits", "train", "--out", tmp_path / "labels")
    assert refused.exit_code == 2
    assert "it knows their answers" in refused.output
    assert not (tmp_path / "labels").exists()
    taken = mvlm("label", run, "--scales", "1,9", "--splits", "train", "--training-rows", "--max-new-tokens", "1",
                 "--out", tmp_path / "labels")  # fmt: skip
    assert taken.exit_code == 0, taken.output
    write_json(run / "run.json", describe("run", rows_sha256="0" * 64))
    changed = mvlm("label", run, "--scales", "1,9", "--splits", "val", "--out", tmp_path / "again")
    assert changed.exit_code == 2
    assert "or its splits have changed since" in changed.output
    assert not (tmp_path / "again").exists()
    (run / "run.json").unlink()
    (run / "train.yaml").unlink()
