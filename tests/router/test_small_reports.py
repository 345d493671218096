"""Reports of small sets as people bring them: few pictures, no tasks, any format, answers that are never right."""

from __future__ import annotations

import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from export.runtime.artefact import place_beside, sha256_file, write_json
from export.runtime.errors import MvlmError
from router.labels import read_table
from router.metrics import Interval
from router.report.baselines import CascadePoint
from router.report.cards import examples
from router.report.shown_rows import shown_rows
from router.report.summary import claims, lines, verdict, worth_it
from tests.support.labels_maker import Recipe, alter, make_labels

pytestmark = pytest.mark.usefixtures("quickly")


def encoded(kind: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, kind)
    return data.getvalue()


def write_asked(labels: Path, picture: bytes) -> None:
    """What `mvlm label` keeps of the test rows: a question each, and one picture of each group."""
    facts = json.loads((labels / "labels.json").read_text())
    rows = {row["id"]: row for row in pq.read_table(labels / "labels.parquet").to_pylist() if row["split"] == "test"}
    first: dict[str, str] = {}
    asked = []
    for name, row in rows.items():
        holds = first.setdefault(row["group"], name) == name
        asked.append({"id": name, "question": f"what is {name}?", "picture_of": first[row["group"]],
                      "picture": picture if holds else None})  # fmt: skip
    schema = pa.schema([("id", "string"), ("question", "string"), ("picture_of", "string"), ("picture", "binary")])
    pq.write_table(pa.Table.from_pylist(asked, schema), labels / "asked.parquet")
    facts["files"]["asked.parquet"] = sha256_file(labels / "asked.parquet")
    write_json(labels / "labels.json", facts)


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    """Labels of few rows that name no task."""
    folder = tmp_path_factory.mktemp("labels") / "labels"
    make_labels(folder, Recipe(rows=240, groups=48))
    alter(
        folder,
        labels=lambda rows: [row | {"task": None} for row in rows],
        facts={"tasks": {}, "run": "my run", "rows": "my.jsonl", "metrics_said": ["f1"]},
    )
    write_asked(folder, encoded("JPEG"))
    return folder


def test_cards_show_what_the_labels_hold_and_nothing_is_nameless(labels, tmp_path, mvlm):
    done = mvlm("fit-router", labels, "--out", tmp_path / "router")
    assert done.exit_code == 0, done.output
    done = mvlm("report", tmp_path / "router", "--out", tmp_path / "report")  # it knows its labels
    assert done.exit_code == 0, done.output
    following = shlex.split(done.output.splitlines()[-1])
    wanted = ["--scales", "1,4,9,36", "--router", str(tmp_path / "router"), "--rows", "my.jsonl"]
    assert following == ["next:", "mvlm", "export", "my run", *wanted]
    known = json.loads((tmp_path / "router" / "router.json").read_text())["labelled"]
    run, rows = (place_beside(Path(name), tmp_path / "router") for name in ("my run", "my.jsonl"))
    said = {"labels": labels.as_posix(), "run": run, "rows": rows, "metrics_said": ["f1"], "rescored": None}
    assert known == said
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    cards = re.findall(
        r'<div class="example"><img alt="" src="data:image/jpeg;base64,[^"]+"><b>what is r\d+\?</b>', page
    )
    assert len(cards) == page.count('class="example"') > 3
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "" not in {*told["ladder"], *told["chosen"], *told["not_learned"]}
    assert not any(claim.startswith("left out") for claim in told["claims"])
    assert "<td></td>" not in page
    for explained in (
        "the hull: the best that mixing two of them gives",
        "A cascade asks at a coarse scale, and again",
    ):
        assert explained in page
    for nothing_of_tasks in ("a table by task", "lookup by", "knows P(right)"):
        assert nothing_of_tasks not in page + done.output


def test_what_the_labels_hold_is_checked_and_only_pictures_are_inlined(labels, tmp_path):
    facts = read_table(labels).facts
    shown, why_not = shown_rows(labels, facts)
    assert why_not == ""
    assert all(row.picture.startswith("data:image/jpeg;base64,") for row in shown.values())
    make_labels(tmp_path / "labels", Recipe(rows=240, groups=48))
    write_asked(tmp_path / "labels", b"no picture")
    shown, _ = shown_rows(tmp_path / "labels", read_table(tmp_path / "labels").facts)
    assert {row.picture for row in shown.values()} == {""}
    facts = read_table(tmp_path / "labels").facts
    (tmp_path / "labels" / "asked.parquet").write_bytes(b"changed")
    with pytest.raises(MvlmError, match=r"asked.parquet is missing or was changed"):
        shown_rows(tmp_path / "labels", facts)


def test_no_verdict_on_routers_where_hardly_an_answer_is_right(made):
    _, _, e = made("question")
    failed = replace(e, ladder={"all": [0.0, 0.01, 0.0, 0.0]}, scored_by="scored by exact (9 rows)",
                     steepness=Interval(0.0, 0.0, 0.0))  # fmt: skip
    assert verdict(failed).startswith("HARDLY AN ANSWER IS RIGHT")
    assert "the metric (scored by exact (9 rows))" in verdict(failed)
    assert worth_it(failed).startswith("It cannot be said")
    assert claims(failed) == ["not tested: nothing, since hardly an answer is right"]
    assert not any("points above" in line for line in lines(failed))
    assert any("points above" in line for line in lines(e))


def test_few_pictures_do_not_make_a_ladder_flat(made):
    _, _, e = made("question")
    few = replace(e, groups=15, steepness=Interval(0.03, -0.05, 0.11))
    assert (few.flat, few.undecided) == (False, True)
    assert "It is not shown that more tokens help" in verdict(few)
    assert "about 107 test pictures would decide, and there are 15" in verdict(few)
    surely = replace(e, steepness=Interval(0.01, -0.02, 0.04))
    assert (surely.flat, surely.undecided) == (True, False)
    assert verdict(surely).startswith("THE LADDER IS FLAT")


def test_a_router_that_is_not_shown_to_win_says_how_many_pictures_would(made):
    _, _, e = made("noise")
    router = e.policy("router")
    near = [replace(at, gain=Interval(0.01, -0.01, 0.03)) for at in router.at]
    unsure = replace(router, at=near, mean_gain=Interval(0.01, -0.01, 0.03))
    told = verdict(replace(e, groups=50, policies=[unsure, *e.policies[1:]], steepness=Interval(0.3, 0.2, 0.4)))
    assert told.startswith("The router does not surely beat mixing two fixed scales at any stated budget")
    assert "about 200 test pictures would decide, and there are 50" in told


@pytest.mark.parametrize(
    ("metric", "wanted"), [("exact", "right is "), ("f1", "right is "), ("agreement", "the finest scale says ")]
)
def test_cards_say_what_an_answer_is_held_against(made, metric, wanted):
    _, table, e = made("question")
    scored = replace(table.test_rows, facts=table.facts | {"metrics": {metric: 9}})
    told = examples(e, scored, {}, "")
    assert told.count(f"<br>{wanted}") == told.count('class="example"') > 3


def test_one_cascade_for_several_budgets_is_told_once(made):
    _, _, e = made("question")
    point = CascadePoint(4.0, 1, 9, 1.0, 0.28)
    told = lines(replace(e, cascade=[point, replace(point, budget=9.0), replace(point, budget=18.0, score=0.3)]))
    assert [line.split(":")[0].strip() for line in told if "cascade" in line] == [
        "cascade on the first token, budget 4", "cascade on the first token, budget 18",
    ]  # fmt: skip


def test_agreement_is_never_called_right(labels):
    table = read_table(labels)
    assert table.measures == "right answers"
    assert replace(table, facts=table.facts | {"metrics": {"exact": 3, "number:0.5": 2}}).measures == "right answers"
    assert replace(table, facts=table.facts | {"metrics": {"exact": 3, "anls": 2}}).measures == "mean score"
    agreeing = replace(table, facts=table.facts | {"metrics": {"agreement:f1": 9}})
    assert agreeing.measures == "answers that agree with the finest scale"
