"""Any value anywhere in the JSON files of a checkpoint or a run: it is read, or refused by name; nothing else.

Three kinds of folders, each with so many cases as CASES says.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.tiny_models import byte_words
from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.train.recipe import show_by_default
from tests.support.checkpoints import ROWS, read, stock_llava, write_original, write_transformers
from tests.support.tiny import tiny_model, tiny_processor

CASES = 25
NASTY = [
    None, True, False, -1, 0, 1, 3, 2**31, 2**60, 10**400, 0.5, -0.0, 1e308, math.inf, math.nan, "", "x", "../x", "/",
    "\ud83d", [], [[]], [None], {}, {"a": 1}, [0.5], "1" * 5000, ["x"] * 3,
]  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = write_original(tmp_path_factory.mktemp("original") / "checkpoint", stock_llava(ROWS))
    byte_words().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def of_transformers(tmp_path_factory) -> Path:
    folder = write_transformers(tmp_path_factory.mktemp("transformers") / "checkpoint", stock_llava(ROWS))
    byte_words().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder, processor = tmp_path_factory.mktemp("run"), tiny_processor()
    model = tiny_model(processor=processor)
    show_by_default(model, processor, 9)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """Every place of a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(found for key, part in inside for found in places(part, (*at, key)))]


def spoiled(folder: Path, data: st.DataObject, into: Path) -> tuple[Path, str]:
    """A copy of a folder where one value of one of its small JSON files is another."""
    shutil.copytree(folder, into)
    files = sorted(file for file in into.rglob("*.json") if file.name != "tokenizer.json")
    file = data.draw(st.sampled_from(files))
    told = json.loads(file.read_text())
    path, nasty = data.draw(st.sampled_from(places(told))), data.draw(st.sampled_from(NASTY))
    place = told
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = nasty
    file.write_text(json.dumps(told))
    return into, f"{file.name} {path} {nasty!r:.40}"


def held(folder: Path, data: st.DataObject, tmp_path_factory, opened) -> None:
    room, said = tmp_path_factory.mktemp("nasty"), ""
    try:
        opened(spoiled(folder, data, room / "folder")[0], room)
    except MvlmError as error:
        said = str(error)
    finally:
        shutil.rmtree(room)
    assert len(said) < 3000


ANY = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.filterwarnings("ignore")
@ANY
@given(st.data())
def test_any_value_of_a_checkpoint(original, tmp_path_factory, data):
    held(original, data, tmp_path_factory, lambda folder, room: read(folder, room / "run"))


@pytest.mark.filterwarnings("ignore")
@ANY
@given(st.data())
def test_any_value_of_a_checkpoint_of_transformers(of_transformers, tmp_path_factory, data):
    held(of_transformers, data, tmp_path_factory, lambda folder, room: read(folder, room / "run"))


@pytest.mark.filterwarnings("ignore")
@ANY
@given(st.data())
def test_any_value_of_a_run(run, tmp_path_factory, data):
    held(run, data, tmp_path_factory, lambda folder, room: load_run(folder))


@pytest.mark.filterwarnings("ignore")
def test_half_of_a_surrogate_pair_is_refused(of_transformers, tmp_path):
    folder = shutil.copytree(of_transformers, tmp_path / "checkpoint")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"backend": "\ud83d"}))
    with pytest.raises(MvlmError, match="holds half of a surrogate pair: get it again"):
        read(folder, tmp_path / "run")
