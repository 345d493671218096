"""Adapters and projectors over their base: what LLaVA's own loading, and peft, make of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from benchmarks.tiny_models import byte_words
from mvlm_core.checkpoints.family import FAMILIES
from mvlm_core.checkpoints.run_folder import load_run
from tests.support.checkpoints import (
    PROJECTOR,
    ROWS,
    Tensors,
    change,
    original_config,
    original_tensors,
    stock_llava,
    write,
    write_original,
)

# peft asks transformers for it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
TARGETS = ["q_proj", "down_proj"]


@pytest.fixture
def base(tmp_path) -> Path:
    folder = write_original(tmp_path / "base", stock_llava(ROWS))
    byte_words().save_pretrained(folder)
    return folder


def adapters(folder: Path, **options) -> Tensors:
    """A LoRA training of the same model, as LLaVA saves it; the tensors that peft's own merging makes of it."""
    stock = stock_llava(ROWS)
    language = get_peft_model(
        stock.model.language_model, LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, **options)
    )
    torch.manual_seed(1)
    for name, parameter in language.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    language.save_pretrained(folder)
    held = load_file(folder / "adapter_model.safetensors")
    # The language model alone was wrapped here, and LLaVA wraps the whole.
    save_file({name.replace("base_model.model.", "base_model.model.model."): tensor for name, tensor in held.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    stock.model.language_model = language.merge_and_unload()
    with torch.no_grad():
        stock.model.multi_modal_projector.linear_1.weight.mul_(1.5)
    merged = original_tensors(stock)[0]
    torch.save({f"base_model.model.{PROJECTOR}": merged[PROJECTOR]}, folder / "non_lora_trainables.bin")
    write(folder / "config.json", original_config(ROWS))
    return merged


def imported(mvlm, checkpoint: Path, base: Path, out: Path):
    return mvlm("import", checkpoint, "--base", base, "--vision-tower", base / "clip", "--out", out)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_adapters_are_merged_as_peft_merges_them(base, tmp_path, mvlm, options):
    merged = adapters(tmp_path / "lora", **options)
    done = imported(mvlm, tmp_path / "lora", base, tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "adapters of adapter_model.safetensors merged into 4 weights" in done.output
    model, _ = load_run(tmp_path / "run")
    changed = 0
    for name, tensor in model.language_model.state_dict().items():
        torch.testing.assert_close(tensor[:ROWS], merged[name], rtol=1e-6, atol=1e-6)
        changed += not torch.equal(tensor[:ROWS], original_tensors(stock_llava(ROWS))[0][name])
    assert changed == 4
    assert any(torch.equal(tensor, merged[PROJECTOR]) for tensor in model.connector.state_dict().values())
    assert "lora/adapter_model.safetensors" in json.loads((tmp_path / "run" / "import.json").read_text())["files"]


def test_a_projector_alone_over_its_language_model(base, tmp_path, mvlm):
    tensors = load_file(base / "model.safetensors")
    projector = {name: tensor * 2 for name, tensor in tensors.items() if "mm_projector" in name}
    save_file({name: tensor for name, tensor in tensors.items() if name not in projector}, base / "model.safetensors")
    (tmp_path / "stage1").mkdir()
    torch.save(projector, tmp_path / "stage1" / "mm_projector.bin")
    write(tmp_path / "stage1" / "config.json", original_config(ROWS))
    done = imported(mvlm, tmp_path / "stage1", base, tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "4 tensors of mm_projector.bin in place" in done.output
    held = load_run(tmp_path / "run")[0].connector.state_dict().values()
    assert any(torch.equal(tensor, projector[PROJECTOR]) for tensor in held)


def another_base(lora: Path) -> None:
    held = load_file(lora / "adapter_model.safetensors")
    save_file({name.replace("layers.1", "layers.7"): t for name, t in held.items()}, lora / "adapter_model.safetensors")


def half(lora: Path) -> None:
    held = load_file(lora / "adapter_model.safetensors")
    save_file({name: t for name, t in held.items() if "lora_A" in name}, lora / "adapter_model.safetensors")


def wider(lora: Path) -> None:
    held = load_file(lora / "adapter_model.safetensors")
    save_file({name: torch.cat([t, t]) for name, t in held.items()}, lora / "adapter_model.safetensors")


def other_tensors(lora: Path) -> None:
    save_file({"base_model.model.x.lora_magnitude": torch.ones(1)}, lora / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (another_base, "was made for another base: 2 of its adapters have no weight there"),
        (half, "model.layers.0.self_attn.q_proj.weight: half an adapter"),
        (wider, "model.layers.0.self_attn.q_proj.weight is (32, 32), and its adapter (6, 32), (64, 3)"),
        (other_tensors, "base_model.model.x.lora_magnitude is no adapter of LoRA"),
        (lambda lora: (lora / "adapter_model.safetensors").unlink(), "and none of adapter_model.safetensors"),
        (lambda lora: change(lora / "adapter_config.json", use_dora=True), "sets use_dora to True, which is not"),
        (lambda lora: change(lora / "adapter_config.json", peft_type="VERA"), "sets peft_type to 'VERA'"),
        (lambda lora: change(lora / "adapter_config.json", r=0), "says no r and lora_alpha"),
    ],
)  # fmt: skip
def test_adapters_that_are_refused(base, tmp_path, mvlm, harm, says):
    adapters(tmp_path / "lora")
    harm(tmp_path / "lora")
    done = imported(mvlm, tmp_path / "lora", base, tmp_path / "run")
    assert done.exit_code == 2
    assert says in done.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_another_family_are_merged_by_peft(base, tmp_path, mvlm, family):
    adapters(tmp_path / "lora")
    (tmp_path / "lora" / "config.json").unlink()  # peft writes none
    change(base / "config.json", model_type=family)
    done = imported(mvlm, tmp_path / "lora", base, tmp_path / "run")
    assert done.exit_code == 2
    assert f"error: adapters of {FAMILIES[family].title} are merged by peft, and not here: load {base}" in done.output
    assert done.output.count("\n") == 1


def test_a_base_that_is_none(base, tmp_path, mvlm):
    assert "there is no folder" in imported(mvlm, base, tmp_path / "nowhere", tmp_path / "run").output
    assert "so it needs no base: leave --base away" in imported(mvlm, base, base, tmp_path / "run").output
