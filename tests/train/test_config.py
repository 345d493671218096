"""Configurations: every error at once, with the nearest key."""

from pathlib import Path

import pytest
import yaml

from export.runtime.errors import MvlmError
from export.runtime.families import FAMILIES
from mvlm_core.train.config import read_config, run_scales, scenes_config, write_config


@pytest.fixture
def file(tmp_path) -> Path:
    write_config(tmp_path / "train.yaml", scenes_config("pool", rows=tmp_path / "rows", seed=3))
    return tmp_path / "train.yaml"


@pytest.mark.parametrize("family", FAMILIES)
def test_written_and_read_back(tmp_path, family):
    config = scenes_config(family, rows=tmp_path / "rows", seed=3)
    write_config(tmp_path / "train.yaml", config)
    assert read_config(tmp_path / "train.yaml") == config
    assert config.model.connector == family
    assert run_scales(tmp_path) == config.scales
    write_config(tmp_path / "train.yaml", config.model_copy(update={"scales": (144, 1)}))
    assert run_scales(tmp_path) == (1, 144)


def test_a_template_s_name_is_no_folder_that_is_called_so(tmp_path, file):
    (tmp_path / "vicuna").mkdir()
    assert read_config(file, ("model.chat_template=vicuna",)).model.chat_template == "vicuna"


def test_rows_are_as_seen_from_the_file(tmp_path, file):
    assert yaml.safe_load(file.read_text())["rows"] == "rows"
    assert read_config(file).rows == tmp_path / "rows"


def test_overrides(file):
    config = read_config(file, ("stages.1.steps=9", "scales=[1, 144]", "model.image.size_px=48"))
    assert (config.stages[1].steps, config.scales, config.model.image.size_px) == (9, (1, 144), 48)
    tree = yaml.safe_load(file.read_text())
    del tree["attention"]
    file.write_text(yaml.safe_dump(tree))
    assert read_config(file, ("attention.text=eager",)).attention.text == "eager"
    with pytest.raises(MvlmError, match="atention: no such key; did you mean attention"):
        read_config(file, ("atention.text=eager",))


@pytest.mark.parametrize(
    "override", ["stages.9.steps=1", "seed", "=1", "model.image.size_px.x=1", "seed=[", "stages.x=1"]
)
def test_overrides_that_fit_nowhere(file, override):
    with pytest.raises(MvlmError, match=r"key=value|has no"):
        read_config(file, (override,))


def test_every_fault_at_once_with_the_nearest_key(file):
    tree = yaml.safe_load(file.read_text())
    tree["sed"] = 1
    tree["stages"][0]["stepps"] = 3
    tree["stages"][1]["steps"] = 0
    tree["stages"][1]["zzz"] = 0
    tree["model"]["image"]["size"] = 3
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(MvlmError) as error:
        read_config(file)
    lines = str(error.value).splitlines()
    assert "has 5 faults" in lines[0]
    for wanted in ("sed: no such key; did you mean seed?", "stages.0.stepps: no such key; did you mean steps?",
                   "stages.1.steps: Input should be greater than 0",
                   "model.image.size: no such key; did you mean size_px?",
                   "stages.1.zzz: no such key; known: name"):  # fmt: skip
        assert any(wanted in line for line in lines), wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": [9, 9]}, "each stands once"),
        ({"seed": -1}, "seed: Input should be greater"),
        ({"model": {"vision": {"name": 3}}}, r"vision\.name is no text"),
        ({"model": {"image": {"size_px": 96, "std": [0.2, 0, 0.2]}}}, r"image\.std\.1: Input should be greater than 0"),
        ({"scales": [1, 100]}, "cannot show a picture in 100 tokens: it allows 1, 4, 9"),
        ({"stages": []}, "stages"),
        ({"model": {"vision": {}}}, "vision needs either a name"),
        ({"stages": "same"}, "two stages have the same name"),
    ],
)
def test_what_does_not_fit_together(file, change, message):
    tree = yaml.safe_load(file.read_text())
    if change == {"stages": "same"}:
        change = {"stages": [tree["stages"][1]] * 2}
    if "model" in change:
        change = {"model": tree["model"] | change["model"]}
    file.write_text(yaml.safe_dump(tree | change))
    with pytest.raises(MvlmError, match=message):
        read_config(file)


def test_files_that_hold_no_configuration(tmp_path):
    with pytest.raises(MvlmError, match="there is no configuration"):
        read_config(tmp_path / "train.yaml")
    for text, message in (("a: [", "not valid YAML"), ("[]", "must hold keys and values")):
        (tmp_path / "train.yaml").write_text(text)
        with pytest.raises(MvlmError, match=message):
            read_config(tmp_path / "train.yaml")
