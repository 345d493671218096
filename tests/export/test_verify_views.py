"""Verification of a bundle with tiles: it passes what is right, and says how a picture is shown otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from export.bundle.source import read_source
from export.bundle.table import write_newline
from export.bundle.verify import verify_bundle
from export.runtime import CheckFailed, MvlmError
from mvlm_core.data.pictures import PictureFile
from mvlm_core.data.row import PicturePlace, Row, Turn
from tests.runtime.test_manifest import edit
from tests.support.bundles import pool_bundle
from tests.support.families import QUESTION, picture
from tests.support.view_bundles import SCALES, view_bundle

KIND = "llava_onevision"  # newlines, and grids that are shrunk


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[Row]:
    folder = tmp_path_factory.mktemp("rows")
    for n, size in enumerate([(200, 150), (90, 210)]):
        picture(*size, seed=n).save(folder / f"{n}.png")
    turn = Turn((PicturePlace(0), QUESTION), ("red",))
    return [Row(f"r{n}", (PictureFile(folder / f"{n}.png"),), (turn,), None, f"{n}", "test") for n in range(2)]


def verify(bundle: Path, rows: list[Row]):
    return verify_bundle(view_bundle(KIND).source, bundle, rows, lambda steps: None)


def test_what_is_right_passes_at_every_scale(rows):
    report = verify(view_bundle(KIND).bundle, rows)
    assert list(report["scales"]) == [str(scale) for scale in SCALES]
    assert all(facts["same_answers"] == facts["answers"] == len(rows) for facts in report["scales"].values())
    assert report["pictures"]["other"] == 0
    assert report["pictures"]["compared"] == 8  # each as it is, wide, tall and small
    assert len(report["pictures"]["views"]) > 3
    assert max(facts["connector"]["max_relative"] for facts in report["scales"].values()) < 1e-5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda value: value["views"].update(resample="nearest"), "other pixels of the overview"),
        (lambda value: value["views"]["stitching"].update(most_tiles=3), "other ids at scale"),
        (lambda value: value["views"]["rule"].update(grids=[[1, 2], [2, 1]]), "other ids at scale"),
    ],
)
def test_a_picture_that_is_shown_otherwise(change, says, rows, tmp_path):
    bundle = shutil.copytree(view_bundle(KIND).bundle, tmp_path / "bundle")
    edit(bundle, change)
    with pytest.raises(CheckFailed, match=rf"pictures are shown otherwise \(row r0.*{says}"):
        verify(bundle, rows[:1])


def test_scales_that_a_model_has_not():
    with pytest.raises(MvlmError, match="view of this model has no tokens of its own, and native asks for them"):
        read_source(pool_bundle().run, None, (1, "native"))
    with pytest.raises(MvlmError, match=r"the router .* was fitted for 1, 4, 9, 36, 144: stay between its ends"):
        read_source(pool_bundle().run, pool_bundle().router, (1, "4@4"))


def test_views_that_are_stitched_without_a_newline():
    with pytest.raises(MvlmError, match="the views of this model are stitched, and it has no newline vector"):
        write_newline(pool_bundle().source.model, view_bundle(KIND).source.views, None)
