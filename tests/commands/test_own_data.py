"""The example of one's own data: the set that it makes, and the way through every verb."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from examples.own_data.__main__ import QUICK, Walk, main
from examples.own_data.photographs import STAMPS, photographs
from examples.own_data.rows import write_rows
from export.runtime.image import open_picture
from mvlm_core.data.reading import read_rows
from mvlm_core.scoring.of_rows import choose_metrics, unscorable
from tests.support.backbones import write_language_model

# Four bits take more from random weights than from real ones.
RANDOM = replace(QUICK, export=("--verify-rows", "8", "--calibration-rows", "16", "--max-loss", "5"))


@pytest.fixture(scope="module")
def stamps(tmp_path_factory) -> Path:
    """A folder like that of Debian's package: cut-out pictures, each with its caption in many languages."""
    folder = tmp_path_factory.mktemp("stamps")
    for number, kind in enumerate(("animals/birds", "food/fruit", "household/tools")):
        (folder / kind).mkdir(parents=True)
        for n in range(4):
            picture = Image.new("RGBA", (60, 40), (40 * n, 60 * number, 99, 255))
            picture.paste((0, 0, 0, 0), (0, 0, 20, 20))
            picture.save(folder / kind / f"{n}.png")
            (folder / kind / f"{n}.txt").write_text(f"Thing {n} of {kind}.\nde.utf8=Ding {n}.\n", encoding="utf-8")
    (folder / "animals" / "birds" / "0.txt").unlink()  # one without a caption is left out
    return folder


def test_the_set_is_photographs_pages_and_charts(stamps, tmp_path):
    assert write_rows(tmp_path / "my.jsonl", 30, stamps) == 10
    rows = read_rows(tmp_path / "my.jsonl")
    assert Counter(row.task for row in rows) == {
        "caption": 10, "kind": 10, "reading": 21, "counting": 14, "ticked": 7, "chart": 6, "choice": 6,
    }  # fmt: skip
    assert unscorable(rows, choose_metrics(rows)) == []
    pictures = {picture.path for row in rows for picture in row.pictures}
    assert len(pictures) == 30
    for number in (0, 1):  # one stored as it is, one turned: both are seen upright, on white
        seen = open_picture(tmp_path / "my-pictures" / f"photograph00{number}.jpg")
        assert seen.size == (60, 40)
        assert min(seen.getpixel((5, 5))) > 240
    assert write_rows(tmp_path / "again.jsonl", 30, stamps) == 10
    first, again = ((tmp_path / name).read_text().replace("again-", "my-") for name in ("my.jsonl", "again.jsonl"))
    assert first == again  # the seed decides


@pytest.mark.skipif(not STAMPS.is_dir(), reason=f"no photographs at {STAMPS}: apt-get install tuxpaint-stamps-default")
def test_the_photographs_of_the_package(tmp_path):
    found = list(photographs(STAMPS, 30, Random(0)))
    assert len(found) == 30
    assert len({one.kind for one in found}) > 5
    assert all(one.caption and one.kind in one.kinds and min(one.picture.size) > 20 for one in found)


def test_without_the_photographs_the_others_stand_for_them(tmp_path):
    assert write_rows(tmp_path / "my.jsonl", 30, tmp_path / "absent") == 0
    assert len({row.image.key for row in read_rows(tmp_path / "my.jsonl")}) == 30


def test_a_folder_that_is_there_stays(tmp_path, monkeypatch):
    from click.testing import CliRunner

    result = CliRunner().invoke(main, ["--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "is there already" in result.output


@pytest.mark.slow
def test_the_whole_way(stamps, tmp_path, monkeypatch, capsys):
    """Every verb that docs/own-data.md names, in its order, with parts that are loaded from a folder."""
    monkeypatch.chdir(tmp_path)
    write_rows(Path("my.jsonl"), 60, stamps)
    walk = Walk(write_language_model(tmp_path / "language", "smollm2"), RANDOM)
    walk.run()
    said = capsys.readouterr().out
    typed = [shlex.split(line)[2:] for line in said.splitlines() if line.startswith("$ mvlm")]
    verbs = "data init data train label fit-router report fit-router export run"
    assert [words[0] for words in typed] == verbs.split()
    assert set(json.loads(Path("labels/labels.json").read_text())["metrics"]) == {
        "f1", "anls", "number", "relaxed", "yes_no", "choice",
    }  # fmt: skip
    labelled = json.loads(Path("agreeing-router/router.json").read_text())["labelled"]
    assert (labelled["labels"], labelled["rescored"]) == ("../labels", ["agreement"])
    assert json.loads(Path("bundle/bundle.json").read_text())["precision"]["decode"] == "int4"
    assert Path("report/index.html").is_file()


@pytest.mark.slow
@pytest.mark.skipif(
    "MVLM_REAL_WEIGHTS" not in os.environ, reason="minutes of a real language model: set MVLM_REAL_WEIGHTS to run it"
)
def test_the_whole_way_with_real_weights(stamps, tmp_path, monkeypatch):
    from benchmarks.real_weights import save_real_model

    monkeypatch.chdir(tmp_path)
    try:
        save_real_model(tmp_path / "language")
    except RuntimeError as error:
        pytest.skip(str(error))
    write_rows(Path("my.jsonl"), 60, stamps)
    Walk(tmp_path / "language", QUICK).run()
    assert Path("bundle/bundle.json").is_file()
