"""Adapters: what they train, what they keep beside the run, and that folding them in changes no logit."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from export.runtime.errors import MvlmError
from export.runtime.families import FAMILIES
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.train.lora import add_lora, merge_lora
from mvlm_core.train.stages import LoraConfig
from tests.support.tiny import SMALL_MODEL, drawn_picture, metrics, tiny_model, tiny_processor

SHORT = (*SMALL_MODEL, "stages.0.steps=2", "stages.1.steps=4", "stages.1.save_every=2", "stages.1.matrix_lr=null",
         "keep_checkpoints=true")  # fmt: skip


def inputs(processor):
    return processor(images=drawn_picture(), text=processor.ask("what colour is the star?"), num_visual_tokens=9)


def test_adapters_on_every_linear_layer_of_the_language_model(tmp_path):
    model = tiny_model(tower="clip")
    adapted = add_lora(model, LoraConfig(rank=2, alpha=4), frozen=["vision_tower"], base=tmp_path, seed=0)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or ".connector." in name for name in trained)
    assert any(".connector." in name for name in trained)
    for layer in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert any(f"language_model.model.layers.1.{'mlp' if layer.endswith(('gate_proj', 'up_proj', 'down_proj')) else 'self_attn'}.{layer}.lora_A" in name for name in trained)  # fmt: skip  # noqa: E501
    assert not any("vision_tower" in name for name in trained)
    whole = add_lora(tiny_model(tower="clip"), LoraConfig(rank=2, alpha=4), frozen=[], base=tmp_path, seed=0)
    assert any("vision_tower" in name for name, parameter in whole.named_parameters() if parameter.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_in_it_gives_the_same_logits(family, tmp_path):
    processor = tiny_processor()
    lora = LoraConfig(rank=2, alpha=4)
    adapted = add_lora(tiny_model(family, processor=processor), lora, frozen=[], base=tmp_path, seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or ("connector.modules_to_save" in name and name.endswith("bias")):
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        before = adapted(**inputs(processor)).logits
        merged = merge_lora(adapted, lora, base=tmp_path / "base", adapter=tmp_path / "adapter")
        torch.testing.assert_close(merged(**inputs(processor)).logits, before, atol=1e-4, rtol=1e-4)
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", framework="pt") as kept:
        assert any("connector" in name for name in kept.keys())  # noqa: SIM118 - it is no dictionary
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 2


def test_a_run_with_adapters_is_a_whole_run_and_resumes(scenes, tmp_path, mvlm):
    arguments = ["train", scenes.parent / "train.yaml", *SHORT, "stages.1.lora={rank: 2, alpha: 4, dropout: 0.1}"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = mvlm(*arguments, "--out", whole)
    assert result.exit_code == 0, result.output
    model, _ = load_run(whole)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert (whole / "adapter" / "adapter_model.safetensors").is_file()

    shutil.copytree(whole, cut)
    (cut / "model.safetensors").unlink()
    shutil.rmtree(cut / "checkpoints" / "1-answers" / "checkpoint-4")
    result = mvlm(*arguments, "--out", cut, "--resume")
    assert result.exit_code == 0, result.output
    assert metrics(cut) == metrics(whole)
    again, first = load_file(cut / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (the extra qlora)")
def test_four_bits_are_for_training_only(tmp_path):
    """The run that comes out is the weights as they were, not as four bits held them, plus the adapter."""
    processor, lora = tiny_processor(), LoraConfig(rank=2, alpha=4, four_bit=True)
    model = tiny_model(processor=processor, language="llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = add_lora(model, lora, frozen=[], base=tmp_path / "base", seed=0)
    linear = adapted.get_base_model().language_model.model.layers[0].mlp.up_proj.base_layer
    assert linear.weight.dtype == torch.uint8
    adapted(**inputs(processor)).logits.sum().backward()
    merged = merge_lora(adapted, lora, base=tmp_path / "base", adapter=tmp_path / "adapter")
    assert set(merged.state_dict()) == set(before)
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)  # an untrained adapter adds nothing


def test_four_bits_without_bitsandbytes(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MvlmError, match="bitsandbytes is not installed"):
        add_lora(tiny_model(), LoraConfig(rank=2, alpha=4, four_bit=True), frozen=[], base=tmp_path, seed=0)
