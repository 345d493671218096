"""A configuration for one's own rows, from whatever the model begins with."""

import json

import pytest
from PIL import Image

from mvlm_core.train.build import resolve_config
from mvlm_core.train.config import read_config
from mvlm_core.train.starter import accumulation
from tests.support.backbones import write_language_model, write_tower
from tests.support.tiny import tiny_model, tiny_processor


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = []
    for n in range(150):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / f"{n}.png")
        told.append({"id": str(n), "image": f"{n}.png", "question": "what?", "answers": ["it"]})
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    return "my.jsonl"


def test_from_pretrained_parts(rows, tmp_path, mvlm):
    tower, text = write_tower(tmp_path / "tower", "siglip2"), write_language_model(tmp_path / "text", "qwen2")
    result = mvlm("init", rows, "--vision", tower, "--text", text)
    assert result.exit_code == 0, result.output
    assert "next: mvlm data split my.jsonl" in result.output
    config = resolve_config(read_config(tmp_path / "train.yaml"))
    assert config.scales[0] == 1
    assert config.scales[-1] == config.model.grid_side**2
    assert [stage.name for stage in config.stages] == ["connector", "answers"]
    assert config.stages[0].frozen == ("vision_tower", "language_model")
    assert config.stages[1].lr == 2e-5
    assert config.stages[1].max_tokens == 512  # as long as the language model
    assert all(stage.show == config.scales for stage in config.stages)
    assert config.stages[1].evaluate_every is None  # nothing is of the split val
    assert mvlm("data", "split", rows).exit_code == 0
    again = mvlm("init", rows, "--vision", tower, "--text", text, "--overwrite")
    assert again.output.endswith("next: mvlm data check\n")
    assert read_config(tmp_path / "train.yaml").stages[1].evaluate_every == 200
    assert mvlm("data", "check").exit_code == 0  # what was printed works as it stands


def test_from_a_language_model_alone_the_tower_is_new_and_learns_from_the_first_step(rows, tmp_path, mvlm):
    text = write_language_model(tmp_path / "text", "smollm2")
    assert mvlm("init", rows, "--text", text, "--family", "query").exit_code == 0
    config = resolve_config(read_config(tmp_path / "train.yaml"))
    assert config.stages[0].frozen == ("language_model",)
    assert config.scales == (1, 4, 16, 64, 256)


def test_from_a_checkpoint_and_from_nothing(rows, tmp_path, mvlm):
    processor = tiny_processor()
    tiny_model(processor=processor).save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    assert mvlm("init", rows, "--start", "checkpoint", "--out", "deep/other.yaml").exit_code == 0
    config = resolve_config(read_config(tmp_path / "deep" / "other.yaml"))
    assert [stage.name for stage in config.stages] == ["answers"]
    assert config.rows.resolve() == tmp_path / rows
    result = mvlm("init", rows, "--demo")
    assert result.exit_code == 0, result.output
    assert resolve_config(read_config(tmp_path / "train.yaml")).stages[0].lr == 2e-3


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ((), "say what the model begins from"),
        (("--demo", "--start", "run"), "say what the model begins from"),
        (("--vision", "tower"), "a pretrained tower needs a language model"),
        (("--text", "absent/model"), "absent/model"),
    ],
)
def test_what_cannot_begin(rows, tmp_path, mvlm, told, why):
    result = mvlm("init", rows, *told)
    assert result.exit_code == 2
    assert why in result.output
    assert not (tmp_path / "train.yaml").exists()


def test_a_file_that_is_there_stays(rows, tmp_path, mvlm):
    (tmp_path / "train.yaml").write_text("mine")
    assert "is there already" in mvlm("init", rows, "--demo").output
    assert (tmp_path / "train.yaml").read_text() == "mine"


def test_a_verb_without_a_configuration_names_init(rows, mvlm):
    assert "`mvlm init ROWS` writes one" in mvlm("train").output


@pytest.mark.parametrize(("free", "passes"), [(0.5, 16), (4, 4), (7.9, 4), (80, 1)])
def test_a_step_is_cut_to_the_memory_that_is_free(free, passes):
    assert accumulation(free) == passes
