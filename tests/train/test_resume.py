"""What a stopped stage goes on from: whole checkpoints only, and only weights that fill the model."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.runtime.errors import CheckFailed, MvlmError
from mvlm_core.train.lora import add_lora
from mvlm_core.train.resume import WholeCheckpoints, last_whole_checkpoint, require_fitting_weights, step_of
from mvlm_core.train.stages import LoraConfig
from tests.support.tiny import tiny_model


def checkpoint(stage: Path, step: int) -> Path:
    folder = stage / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * step)
    (folder / "inner" / "optimizer.pt").write_bytes(b"moments")
    state = SimpleNamespace(global_step=step, is_world_process_zero=True)
    WholeCheckpoints().on_save(SimpleNamespace(output_dir=str(stage)), state, None)
    return folder


def test_the_last_one_is_taken(tmp_path):
    said: list[str] = []
    for step in (2, 10, 4):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-zero").mkdir()
    assert step_of(last_whole_checkpoint(tmp_path, said.append)) == 10
    assert said == []
    assert last_whole_checkpoint(tmp_path / "nothing", said.append) is None
    assert step_of(None) == 0


def cut(folder: Path) -> None:
    file = folder / "inner" / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:3])


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "whole.json").unlink(),
        lambda folder: (folder / "whole.json").write_text(""),
    ],
    ids=["a file cut short", "a file gone", "never finished", "an empty mark"],
)
def test_one_that_was_cut_short_is_left_out_and_the_one_before_taken(tmp_path, damage):
    said: list[str] = []
    checkpoint(tmp_path, 2)
    damage(checkpoint(tmp_path, 4))
    assert step_of(last_whole_checkpoint(tmp_path, said.append)) == 2
    assert len(said) == 1
    assert "checkpoint-4 was cut short" in said[0]
    assert not (tmp_path / "checkpoint-4").exists()


def test_one_of_the_right_size_that_holds_other_bytes_is_left_out(tmp_path):
    said: list[str] = []
    checkpoint(tmp_path, 2)
    weights = checkpoint(tmp_path, 4) / "model.safetensors"
    weights.write_bytes(bytes(len(weights.read_bytes())))
    assert step_of(last_whole_checkpoint(tmp_path, said.append)) == 2
    assert "checkpoint-4 holds other bytes than were written (model.safetensors): it is left out" in said[0]


def test_one_of_an_older_mvlm_is_known_by_the_sizes_of_its_files(tmp_path):
    folder, said = checkpoint(tmp_path, 2), []
    (folder / "whole.json").write_text(json.dumps({"inner/optimizer.pt": 7, "model.safetensors": 14}))
    assert last_whole_checkpoint(tmp_path, said.append) == folder
    cut(folder)
    assert last_whole_checkpoint(tmp_path, said.append) is None
    assert "was cut short" in said[0]


@pytest.fixture
def stored(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    require_fitting_weights(tmp_path, model)
    return model, tmp_path


@pytest.mark.parametrize("fault", ["renamed", "missing", "shape"])
def test_weights_that_do_not_all_load_are_an_error(stored, fault):
    """The Trainer itself would log a warning and train from random weights."""
    model, folder = stored
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("language_model.model.layers.0"))
    value = tensors.pop(name)
    if fault == "renamed":
        tensors[name.replace("model.layers", "layers")] = value
    if fault == "shape":
        tensors[name] = torch.zeros(3)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckFailed, match=name.replace(".", r"\.")):
        require_fitting_weights(folder, model)


def test_weights_that_cannot_be_read(stored):
    model, folder = stored
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(MvlmError, match="cannot be read"):
        require_fitting_weights(folder, model)


@pytest.mark.parametrize("part", ["lora_B", "connector"])
def test_adapters_that_do_not_all_load_are_an_error(tmp_path, part):
    """peft itself would say nothing, and go on from an adapter that changes nothing."""
    lora = LoraConfig(rank=2, alpha=4)
    adapted = add_lora(tiny_model(), lora, frozen=["vision_tower"], base=tmp_path, seed=0)
    adapted.save_pretrained(tmp_path)
    require_fitting_weights(tmp_path, adapted)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if part in name)
    tensors[f"{name}.more"] = tensors.pop(name)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckFailed, match=f"2 tensors differ .*{name}"):
        require_fitting_weights(tmp_path, adapted)


def test_a_checkpoint_in_shards_is_left_to_those_who_load_it(tmp_path):
    require_fitting_weights(tmp_path, tiny_model())
