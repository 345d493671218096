"""Folders of adapters, and of a projector alone: refused with the way out, instead of reading the base in silence."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.runtime.errors import MvlmError
from tests.support.checkpoints import PROJECTOR, ROWS, Tensors, read, stock_llava, write_original
from tests.support.families import make


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"])
def test_adapters_beside_the_base(tmp_path, mvlm, name):
    write_original(tmp_path / "checkpoint", stock_llava(ROWS))
    (tmp_path / "checkpoint" / name).write_bytes(b"{}")
    done = mvlm("import", tmp_path / "checkpoint", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert f"holds adapters ({name}), which are nothing without their base: name its folder with --base" in done.output
    assert not (tmp_path / "run").exists()


def test_a_projector_alone(tmp_path, mvlm):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "mm_projector.bin").write_bytes(b"")
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    done = mvlm("import", tmp_path / "checkpoint", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "holds a projector (mm_projector.bin) without its language model" in done.output


def bfloat16(tensors: Tensors) -> Tensors:
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


@pytest.fixture
def whole(tmp_path) -> tuple[Path, Tensors]:
    """A checkpoint that is whole, and its projector."""
    folder = write_original(tmp_path / "checkpoint", stock_llava(ROWS))
    tensors = load_file(folder / "model.safetensors")
    return folder, {name: tensor for name, tensor in tensors.items() if "mm_projector" in name}


@pytest.mark.parametrize("kept", [dict, bfloat16])
def test_a_copy_of_the_projector_is_fine(whole, tmp_path, kept):
    folder, projector = whole
    torch.save(kept(projector), folder / "mm_projector.bin")
    read(folder, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("mm_projector.bin", lambda tensor: tensor * 1.5),
        ("mm_projector.bin", lambda tensor: (tensor * 1.5).bfloat16()),
        ("mm_projector.safetensors", lambda tensor: tensor + 1),
        ("model-00003-of-00003.safetensors", lambda tensor: tensor[:1].clone()),
    ],
)
def test_another_projector_beside_the_weights(whole, mvlm, tmp_path, name, changed):
    folder, projector = whole
    other = projector | {PROJECTOR: changed(projector[PROJECTOR])}
    save_file(other, folder / name) if name.endswith("safetensors") else torch.save(other, folder / name)
    done = mvlm("import", folder, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert f"{name} lies beside the weights, and 1 of its tensors are not theirs ({PROJECTOR}): if" in done.output
    assert not (tmp_path / "run").exists()


def test_a_projector_that_the_weights_know_nothing_of(whole, tmp_path):
    folder, projector = whole
    torch.save({f"another.{name}": tensor for name, tensor in projector.items()}, folder / "mm_projector.bin")
    with pytest.raises(MvlmError, match=r"4 of its tensors are not theirs \(another\.model\..*, …\)"):
        read(folder, tmp_path / "run")


def test_safetensors_beside_a_family(tmp_path):
    folder = tmp_path / "checkpoint"
    make("smolvlm", folder)
    save_file({"projector.weight": torch.zeros(2)}, folder / "projector.safetensors")
    with pytest.raises(MvlmError, match=r"projector\.safetensors lies beside the weights"):
        read(folder, tmp_path / "run")


def test_a_tensor_of_any_name_under_that_of_the_model_is_a_layers(whole, tmp_path):
    folder, _ = whole
    save_file({f"{PROJECTOR.partition('.')[0]}.gate": torch.zeros(2)}, folder / "more.safetensors")
    with pytest.raises(MvlmError, match=r"1 of its tensors are not theirs"):
        read(folder, tmp_path / "run")


def test_outputs_that_are_kept_beside_the_weights_are_no_layers(whole, tmp_path):
    folder, _ = whole
    save_file({"logits.144": torch.zeros(2), "input_ids": torch.zeros(2)}, folder / "golden.safetensors")
    read(folder, tmp_path / "run")
