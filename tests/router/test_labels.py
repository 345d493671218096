"""labels/ as the router reads them: what comes through, and every fault with its message, all at once."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from export.runtime import MvlmError
from export.runtime.artefact import sha256_file, write_json
from export.runtime.features import FEATURE_VERSION
from export.runtime.label_columns import ALWAYS, LABELS
from router.labels import read_table
from tests.support.labels_maker import IMAGE_FEATURES, QUESTION_FEATURES, Recipe, alter, make_labels

SMALL = Recipe(rows=96, groups=48)


@pytest.fixture
def folder(tmp_path):
    make_labels(tmp_path / "labels", SMALL)
    return tmp_path / "labels"


def changed(which, **columns):
    """A change of some columns in the rows that `which` picks."""
    return lambda rows: [row | columns if which(row) else row for row in rows]


def named(*names):
    return lambda row: row["id"] in names


def at(name, scale):
    return lambda row: row["id"] == name and row["num_visual_tokens"] == scale


def test_every_label_finds_its_row_and_scale(folder):
    rows = []
    alter(folder, labels=lambda lines: rows.extend(lines) or lines[::-1])
    table = read_table(folder)
    assert len(table) == 96
    assert table.scales == (1, 4, 9, 36)
    for row in rows:
        i, k = table.ids.tolist().index(row["id"]), table.scales.index(row["num_visual_tokens"])
        assert table.scores[i, k] == row["score"]
        assert table.predictions[i, k] == row["prediction"]
        of_row = (table.groups[i], table.tasks[i], table.splits[i], table.answers[i])
        assert of_row == (row["group"], row["task"], row["split"], row["answer"])


def test_features_belong_to_their_rows(folder):
    rows = []
    alter(folder, features=lambda lines: rows.extend(lines) or lines)
    table = read_table(folder)
    assert table.image.shape == (96, len(IMAGE_FEATURES))
    assert table.question.shape == (96, len(QUESTION_FEATURES))
    for row, image, question in zip(rows, table.image, table.question, strict=True):
        np.testing.assert_array_equal(image, np.float32(row["image"]))
        np.testing.assert_array_equal(question, np.float32(row["question"]))


def test_the_test_split_is_kept_apart(folder):
    table = read_table(folder)
    assert set(table.fit_rows.splits) == {"val"}
    assert set(table.test_rows.splits) == {"test"}
    assert len(table.fit_rows) + len(table.test_rows) == len(table)
    assert not set(table.fit_rows.groups) & set(table.test_rows.groups)


def test_graded_scores_and_rows_without_task_or_answer_pass(folder):
    alter(folder, labels=changed(named("r1"), score=0.25, task=None, answer=None, prediction=None))
    table = read_table(folder)
    i = table.ids.tolist().index("r1")
    assert table.scores[i].tolist() == [0.25] * 4
    assert (table.tasks[i], table.answers[i], table.predictions[i, 0]) == ("", "", None)


FAULTS = {
    "a hole": (
        {"labels": lambda rows: [row for row in rows if not at("r3", 9)(row)]},
        "no label for 1 of (row, scale): r3 at 9",
    ),
    "many holes": (
        {"labels": lambda rows: [row for row in rows if not named("r1", "r2", "r5")(row)]},
        "no label for 12 of (row, scale): r1 at 1, r1 at 4, r1 at 9, r1 at 36, r2 at 1, r2 at 4, r2 at 9, r2 at 36"
        " and 4 more",
    ),
    "a label twice": (
        {"labels": lambda rows: rows + [row for row in rows if at("r3", 9)(row)]},
        "several labels for 1 of (row, scale): r3 at 9",
    ),
    "a row twice": (
        {"features": lambda rows: [*rows, rows[7]]},
        "features of one row twice: r7",
    ),
    "a label of an unknown row": (
        {"labels": lambda rows: [*rows, rows[0] | {"id": "stranger"}]},
        "labels of rows without features, or at other scales than labels.json says: stranger",
    ),
    "a label at another scale": (
        {"labels": lambda rows: [*rows, rows[0] | {"num_visual_tokens": 144}]},
        "at other scales than labels.json says: r0",
    ),
    "image features too short": (
        {"features": changed(named("r1", "r2"), image=[1.0])},
        f"image features that are not {len(IMAGE_FEATURES)} long: r1, r2",
    ),
    "no question features": (
        {"features": changed(named("r4"), question=None)},
        f"question features that are not {len(QUESTION_FEATURES)} long: r4",
    ),
    "NaN features": (
        {"features": changed(named("r6"), image=[1.0, float("nan"), 0.0])},
        "image features that are no numbers: r6",
    ),
    "infinite features": (
        {"features": changed(named("r6"), question=[float("inf")] * len(QUESTION_FEATURES))},
        "question features that are no numbers: r6",
    ),
    "null among features": (
        {"features": changed(named("r6"), image=[1.0, None, 0.0])},
        "image features that are no numbers: r6",
    ),
    "a score above 1": ({"labels": changed(at("r8", 4), score=1.5)}, "scores outside 0 to 1: r8"),
    "a score below 0": ({"labels": changed(at("r8", 4), score=-0.1)}, "scores outside 0 to 1: r8"),
    "no score": ({"labels": changed(at("r8", 4), score=None)}, "scores outside 0 to 1: r8"),
    "no scores anywhere": (
        {"labels": changed(lambda row: True, score=None)},
        "no scores at all: agreement with the finest scale can stand for them, with --target agreement",
    ),
    "features that never change": (
        {"features": changed(lambda row: True, image=[1.0, 2.0, 3.0], question=[0.5] * len(QUESTION_FEATURES))},
        "every feature is the same in all rows: there is nothing to choose by",
    ),
    "a task seen only in test": (
        {"labels": changed(lambda row: row["group"] in ("g1", "g3"), task="counting")},
        "tasks that only the test split has, and no router can learn: counting",
    ),
    "a run that is not whole": (
        {"labels": lambda rows: [
            row | {"sample": sample} for row in rows for sample in (1, 2)
            if (sample, row["id"], row["num_visual_tokens"]) != (2, "r7", 9)
        ]},
        "no label for 1 of (row, scale): r7 at 9 in sample 2",
    ),
    "a group in two splits": (
        {"labels": changed(named("r0"), split="test")},
        "groups in several splits: g0",
    ),
    "a row that is torn": (
        {"labels": changed(at("r5", 9), task="another")},
        "rows whose task differs between their scales: r5",
    ),
    "no group": ({"labels": changed(named("r9"), group=None)}, "rows without a group: r9"),
    "no split": ({"labels": changed(lambda row: row["group"] == "g9", split=None)}, "rows without a split: r9, r57"),
    "too few groups to fit on": (
        {"labels": changed(lambda row: row["split"] == "val" and int(row["group"][1:]) > 20, split="test")},
        "rows outside the test split: 11 groups (pictures), and at least 12 are needed",
    ),
    "too few groups to test on": (
        {"labels": changed(lambda row: row["split"] == "test" and int(row["group"][1:]) > 2, split="val")},
        "rows of the test split: 1 groups (pictures), and at least 12 are needed",
    ),
    "no test split": (
        {"labels": changed(lambda row: True, split="val")},
        "rows of the test split: 0 groups (pictures), and at least 12 are needed",
    ),
    "costs that fall": (
        {"facts": {"cost": [1.0, 9.0, 4.0, 36.0]}},
        "scales (1, 4, 9, 36) and their costs [1.0, 9.0, 4.0, 36.0] must both increase",
    ),
    "costs that stand": ({"facts": {"cost": [1.0, 4.0, 4.0, 36.0]}}, "must both increase"),
    "a cost too few": ({"facts": {"cost": [1.0, 4.0, 9.0]}}, "must both increase"),
    "scales out of order": (
        {"facts": {"scales": [4, 1, 9, 36]}},
        "scales (4, 1, 9, 36) and their costs [1.0, 4.0, 9.0, 36.0] must both increase",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_with_their_rows(folder, fault):
    change, message = FAULTS[fault]
    alter(folder, **change)
    with pytest.raises(MvlmError) as raised:
        read_table(folder)
    head, *lines = str(raised.value).splitlines()
    assert head == f"{folder} has {len(lines)} faults; label again:"
    assert any(message in line for line in lines), str(raised.value)


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            {
                "labels": lambda rows: changed(named("r8"), score=2)(changed(named("r0"), split="test")(rows)),
                "features": changed(named("r6"), image=[float("nan")] * 3),
            },
            ["scores outside 0 to 1: r8", "image features that are no numbers: r6", "groups in several splits: g0"],
        ),
        (
            {"labels": lambda rows: rows[1:], "features": changed(named("r1"), image=[], question=[])},
            ["no label for 1 of (row, scale): r0 at 1", "image features that are not", "question features that are"],
        ),
    ],
)
def test_all_faults_at_once(folder, change, messages):
    alter(folder, **change)
    with pytest.raises(MvlmError, match="has 3 faults") as raised:
        read_table(folder)
    for message in messages:
        assert message in str(raised.value)


@pytest.mark.parametrize("name", ["labels.parquet", "features.parquet"])
def test_files_that_were_changed_or_are_missing(folder, name):
    file = folder / name
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(bytes(whole))
    with pytest.raises(MvlmError, match=f"{name} is missing or was changed since it was written: label again"):
        read_table(folder)
    file.unlink()
    with pytest.raises(MvlmError, match=f"{name} is missing or was changed"):
        read_table(folder)


def test_features_of_another_version(folder):
    alter(folder, facts={"feature_version": FEATURE_VERSION + 1})
    says = f"features of version {FEATURE_VERSION + 1}, and this mvlm makes version {FEATURE_VERSION}: label again"
    with pytest.raises(MvlmError, match=says):
        read_table(folder)


def test_a_description_that_says_too_little(folder):
    file = folder / "labels.json"
    facts = json.loads(file.read_text())
    del facts["cost"], facts["files"]
    file.write_text(json.dumps(facts))
    with pytest.raises(MvlmError, match=r"labels\.json says nothing of cost, files: make the folder again"):
        read_table(folder)


def test_no_labels_at_all(tmp_path):
    with pytest.raises(MvlmError, match=r"holds no labels\.json"):
        read_table(tmp_path)


def test_repeated_runs_are_averaged_and_kept(folder):
    """Graded scores stay graded: a row that is right in one run of two has a score of a half."""

    def twice(rows):
        again = [row | {"sample": 7, "score": 1 - row["score"], "prediction": "another"} for row in rows]
        return [row | {"sample": 3} for row in rows] + again

    first = read_table(folder).samples
    table = read_table(alter(folder, labels=twice))
    assert table.samples.shape == (96, 2, 4)
    np.testing.assert_array_equal(table.samples[:, :1], first)
    assert (table.scores == 0.5).all()
    assert "another" not in table.predictions
    assert table.take(np.arange(5)).samples.shape == (5, 2, 4)


def test_agreement_with_the_finest_stands_for_scores_that_are_missing(folder):
    def unscored(rows):
        said = {1: " Red", 4: "blue", 9: "red", 36: "RED "}
        return [row | {"score": None, "prediction": said[row["num_visual_tokens"]]} for row in rows]

    table = read_table(alter(folder, labels=unscored), "agreement")
    np.testing.assert_array_equal(table.scores, np.tile(np.float32([1, 0, 1, 1]), (96, 1)))
    assert table.target == table.fit_rows.target == "agreement"
    assert table.measures == "answers that agree with the finest scale"


def test_columns_that_are_missing_are_all_named(folder):
    assert set(ALWAYS) <= set(LABELS)
    for name, columns in (("labels", ["group", "score", "num_visual_tokens"]), ("features", ["question"])):
        file = folder / f"{name}.parquet"
        pq.write_table(pq.read_table(file).drop_columns(columns), file)
    facts = json.loads((folder / "labels.json").read_text())
    facts["files"] |= {name: sha256_file(folder / name) for name in ("labels.parquet", "features.parquet")}
    write_json(folder / "labels.json", facts)
    with pytest.raises(MvlmError, match="4 faults; label again") as refused:
        read_table(folder)
    assert str(refused.value).splitlines()[1:] == [
        "  labels.parquet has no column group", "  labels.parquet has no column score",
        "  labels.parquet has no column scale", "  features.parquet has no column question",
    ]  # fmt: skip
    with pytest.raises(MvlmError, match="3 faults"):
        read_table(folder, "agreement")
