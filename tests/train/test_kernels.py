"""Kernels by name: what cannot run here is an error, and never passed over."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from export.runtime.errors import MvlmError
from mvlm_core.train.config import AttentionConfig, scenes_config
from mvlm_core.train.kernels import use_kernels
from tests.support.tiny import tiny_model


@pytest.fixture
def config(tmp_path):
    return scenes_config("pool", rows=tmp_path, seed=0)


def test_attention_by_name(config):
    model = tiny_model(tower="clip")
    use_kernels(model, config.model_copy(update={"attention": AttentionConfig(vision="eager", text="eager")}))
    assert model.config.text_config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "eager"


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is refused without CUDA")
@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"attention": AttentionConfig(text="flex_attention")}, "attention.text: flex_attention runs on CUDA"),
        (
            {"attention": AttentionConfig(vision="flash_attention_2")},
            "attention.vision: flash_attention_2 runs on CUDA",
        ),
        ({"liger": True}, "liger: its kernels run on CUDA"),
    ],
)
def test_what_needs_cuda(config, update, message):
    with pytest.raises(MvlmError, match=message):
        use_kernels(tiny_model(), config.model_copy(update=update))


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"attention": AttentionConfig(vision="flash_attention_2")}, "needs flash-attn"),
        ({"liger": True}, "liger-kernel is not installed"),
    ],
)
def test_what_is_not_installed(config, update, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MvlmError, match=message):
        use_kernels(tiny_model(), config.model_copy(update=update))


def test_liger_is_put_on_the_language_model_or_refused(config, monkeypatch):
    put_on = {}
    fake = SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN={"qwen3": lambda **options: put_on.update(options)})
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    config = config.model_copy(update={"liger": True})
    model = tiny_model(language="qwen3")
    use_kernels(model, config)
    assert put_on == {"model": model.language_model, "fused_linear_cross_entropy": False}
    with pytest.raises(MvlmError, match="no kernels for llama"):
        use_kernels(tiny_model(language="llama"), config)
