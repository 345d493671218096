"""Everybody on one text: the model itself loses nothing, what is known is not asked again, and times become medians."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.decode import real, real_beside, real_own
from benchmarks.decode.real_beside import PROMPT, STEPS, WARM_STEPS, score, told_by_peer, turn
from benchmarks.decode.real_own import Own
from benchmarks.decode.real_peers import Torch
from benchmarks.decode.told import real_beside as real_beside_table


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=800, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, max_position_embeddings=1024,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wanted(model):
    language, ids = LlamaForCausalLM.from_pretrained(model).eval(), torch.arange(7, PROMPT + 27)[None]
    with torch.inference_mode():
        return [(ids[0].numpy(), language(ids).logits[0, PROMPT - 1 : -1])]


@pytest.fixture
def own_float32(model, tmp_path, monkeypatch):
    monkeypatch.setattr(real_own, "_WRITTEN", ("float32",))
    monkeypatch.setattr(real, "calibrated_rows", lambda model, tokenizer: [])
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda folder: None)
    return Own(model, tmp_path, "float32", 1)


def test_the_model_itself_loses_nothing(model, wanted, own_float32, tmp_path):
    for peer in (Torch(model, tmp_path, "float32", 1), own_float32):
        found = score(peer, wanted)
        assert found["kl"] == pytest.approx(0, abs=1e-8)
        assert found["top1"] == 1
    half = score(Torch(model, tmp_path, "bfloat16", 1), wanted)
    assert half["kl"] > 1e-7
    weights = sum(weight.numel() for weight in LlamaForCausalLM.from_pretrained(model).parameters())
    assert own_float32.mib == pytest.approx(4 * weights / 2**20, rel=0.01)


def test_a_turn_times_every_prompt_and_the_tokens_behind(own_float32):
    times = turn(own_float32)
    assert set(times) == {"prefill_36", "prefill_144", "prefill_576", "steps"}
    assert len(times["steps"]) == STEPS - WARM_STEPS
    assert min(times["steps"]) > 0


def test_what_is_known_is_not_asked_again_and_who_cannot_is_named(model, tmp_path, monkeypatch):
    (tmp_path / "scores.json").write_text(json.dumps({"own int8": {"kl": 0.5}}))
    assert real_beside._scored(model, tmp_path, "own int8") == {"kl": 0.5}
    absent: dict[str, str] = {}

    def cannot(model, work, threads):
        raise RuntimeError("it is not there\nand more")

    monkeypatch.setitem(real_beside.PEERS, "own int4", cannot)
    assert real_beside._tried("own int4", absent, lambda name: real_beside._scored(model, tmp_path, name)) is None
    assert absent == {"own int4": "RuntimeError: it is not there"}


def test_times_are_medians_of_all_rounds():
    lines = [
        {"peer": "a", "threads": 1, "load": load, "steps": steps, "prefill_36": 36, "prefill_144": 288 * load,
         "prefill_576": 576}
        for load, steps in ((1, [10, 20]), (2, [20, 40]), (5, [5, 30]))
    ]  # fmt: skip
    rows = told_by_peer({"a": {"kl": 0.1}, "b": {"kl": 0.2}}, lines)
    assert rows["b"] == {"kl": 0.2, "times": {}}
    found = rows["a"]["times"]["1"]
    assert found["decode_tokens_s"] == pytest.approx(1000 / np.median([10, 20, 20, 40, 5, 30]))
    assert found["prefill_tokens_s"] == {"36": 1000, "144": 250, "576": 1000}
    assert (found["rounds"], found["best_step_ms"]) == (3, 5)
    assert found["load"] == {"least": 1, "median": 2, "most": 5}


def test_the_table_says_quality_and_speed_and_who_is_missing():
    times = {"decode_tokens_s": 50.04, "prefill_tokens_s": {"36": 100, "144": 200, "576": 300}, "rounds": 3,
             "load": {"median": 1.26}}  # fmt: skip
    row = {"kl": 0.05, "top1": 0.9, "mib": 98.7}
    found = {
        "model": "a model", "choices": 7, "prompt": 96, "absent": {"c": "RuntimeError: none"},
        "peers": {"a": row | {"times": {"1": times, "2": times}}, "b": row | {"times": {}}},
    }  # fmt: skip
    lines = real_beside_table(found).splitlines()
    assert "| a | 0.0500 | 0.900 | 98.7 | 1 | 50.0 | 100 / 200 / 300 | 3, 1.3 |" in lines
    assert "|  |  |  |  | 2 | 50.0 | 100 / 200 / 300 | 3, 1.3 |" in lines
    assert "| b | 0.0500 | 0.900 | 98.7 |  |  |  |  |" in lines
    assert lines[-1] == "Left out: c (RuntimeError: none)."
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
