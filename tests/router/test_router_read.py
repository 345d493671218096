"""A router's folder, read for a report: whole, of these labels, and each row's own probability."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from export.runtime import MvlmError
from export.runtime.features import FEATURE_VERSION
from router.fit.write import OUT_OF_FOLD
from router.labels import read_table
from router.report.evaluate import read_out_of_fold, router_of_labels
from tests.support.judged import fit_into
from tests.support.labels_maker import (
    Recipe,
    make_labels,
)

pytestmark = pytest.mark.usefixtures("quickly")


def test_probabilities_out_of_fold_find_their_rows(made):
    folder, table, _ = made("question")
    kept = read_out_of_fold(folder / "router", table)
    turned = table.take(np.arange(len(table))[::-1])
    again = read_out_of_fold(folder / "router", turned)
    np.testing.assert_array_equal(again.probability, kept.probability[::-1])
    np.testing.assert_array_equal(again.strange, kept.strange[::-1])
    assert 0 < kept.strange.mean() < 0.05


def test_a_router_of_before_kept_nothing_of_what_is_out_of_distribution(made, tmp_path):
    folder, table, _ = made("question")
    kept = pq.read_table(folder / "router" / OUT_OF_FOLD)
    pq.write_table(kept.drop_columns(["out_of_distribution"]), tmp_path / OUT_OF_FOLD)
    old, new = read_out_of_fold(tmp_path, table), read_out_of_fold(folder / "router", table)
    np.testing.assert_array_equal(old.probability, new.probability)
    assert not old.strange.any()


def test_a_router_that_was_fitted_on_other_rows(made):
    folder, table, _ = made("question")
    fewer = table.take(np.arange(1, len(table)))
    with pytest.raises(
        MvlmError, match="was fitted on 1200 rows, and they are not the 1199 rows outside the test split"
    ):
        read_out_of_fold(folder / "router", fewer)
    renamed = replace(table, ids=np.char.add(table.ids, "x"))
    with pytest.raises(MvlmError, match="they are not the 1200 rows outside the test split of these labels: fit the"):
        read_out_of_fold(folder / "router", renamed)


@pytest.fixture
def pair(tmp_path):
    """A small labels folder with its router, to be spoilt."""
    make_labels(tmp_path / "labels", Recipe(rows=240, groups=48))
    fit_into(tmp_path / "router", read_table(tmp_path / "labels"))
    return tmp_path


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (
            {"model_sha256": "another model"},
            "router was fitted for another model than that of .*labels: fit again on its labels",
        ),
        (
            {"feature_version": FEATURE_VERSION + 1},
            f"reads features of version {FEATURE_VERSION + 1}, and this mvlm computes",
        ),
        ({"scales": [1, 4, 9, 144]}, "are of other scales: fit the router on these labels"),
    ],
)
def test_a_router_for_something_else(pair, facts, says):
    file = pair / "router" / "router.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    with pytest.raises(MvlmError, match=says):
        router_of_labels(pair / "router", read_table(pair / "labels"), pair / "labels")


@pytest.mark.parametrize("name", ["router.onnx", OUT_OF_FOLD])
def test_router_files_that_were_changed_or_are_missing(pair, name):
    table = read_table(pair / "labels")
    file = pair / "router" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(MvlmError, match=f"{name} is missing or was changed since it was written: fit the router again"):
        router_of_labels(pair / "router", table, pair / "labels")
    file.unlink()
    with pytest.raises(MvlmError, match=f"{name} is missing or was changed"):
        router_of_labels(pair / "router", table, pair / "labels")


def test_a_router_that_says_too_little(pair):
    file = pair / "router" / "router.json"
    facts = json.loads(file.read_text())
    del facts["default_price"]
    file.write_text(json.dumps(facts))
    with pytest.raises(MvlmError, match=r"router\.json says nothing of default_price: make the folder again"):
        router_of_labels(pair / "router", read_table(pair / "labels"), pair / "labels")
    file.write_text(json.dumps(facts | {"format_version": 99}))
    with pytest.raises(MvlmError, match="upgrade mvlm"):
        router_of_labels(pair / "router", read_table(pair / "labels"), pair / "labels")
