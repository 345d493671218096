"""The written decoder against transformers, on embeddings alone: every family, phase and kind of weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from export.graphs import decoder as decoder_module
from export.graphs.decoder import require_supported, write_decoder
from export.graphs.dialects import Dialect, FusedDialect, PrimitiveDialect, StandardDialect
from export.graphs.quantize import Dense
from export.graphs.weights import WeightFile
from export.runtime import MvlmError
from export.runtime.backends.onnx import Cache, Decoder, Device
from mvlm_core.modeling.kv_cache import cache_argument, cache_of

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3, "max_position_embeddings": 300,
}  # fmt: skip
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama, biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama, one kv head for all": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 1}),
    "llama, rope_theta": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "llama, narrow heads": (LlamaForCausalLM, LlamaConfig, {"head_dim": 8}),
    "smollm": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "hidden_size": 48,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
        },
    ),
    "smollm3": (
        SmolLM3ForCausalLM,
        SmolLM3Config,
        {"no_rope_layers": [1, 0, 1], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e3}}),
    "qwen3, tied": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True}),
    "qwen3, biases": (Qwen3ForCausalLM, Qwen3Config, {"attention_bias": True}),
}


def random_model(name: str):
    kind, config, options = MODELS[name]
    torch.manual_seed(0)
    model = kind(config(**(SIZES | options))).eval()
    for parameter in model.parameters():  # norms start at one and biases at nought: either would hide being forgotten
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


POSITIONS = SIZES["max_position_embeddings"]
DIALECTS = {
    "fused": FusedDialect(),
    "standard, scatter": StandardDialect("scatter", POSITIONS),
    "standard, concat": StandardDialect("concat", POSITIONS),
    "primitive": PrimitiveDialect("concat", POSITIONS),
}


def written(model, folder, dialect: Dialect = DIALECTS["fused"], floats: str = "float32") -> Decoder:
    with WeightFile(folder / "weights.bin") as weights:
        graph, facts = write_decoder(
            model, weights.tensor, dialect, "decoder.onnx",
            product=Dense(), floats=np.dtype(floats), positions=POSITIONS,
        )  # fmt: skip
    onnx.save(graph, folder / "decoder.onnx")
    return Decoder(folder / "decoder.onnx", facts, Device(threads=1))


def close(file_side, torch_side) -> None:
    np.testing.assert_allclose(file_side, torch_side, atol=2e-5 * np.abs(torch_side).max())


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_of_prompt_and_steps(tmp_path, name, dialect):
    model = random_model(name)
    decoder = written(model, tmp_path, DIALECTS[dialect])
    for length in (1, 2, 7, 150):
        cache = Cache(decoder, length + 20)
        embeds = torch.randn(1, length, model.config.hidden_size)
        outputs = model(inputs_embeds=embeds, use_cache=True)
        close(decoder.step(embeds[0].numpy(), cache), outputs.logits[0, -1].numpy())
        for more in (1, 1, 5, 1):  # steps of one, and a second prompt behind the first
            embeds = torch.randn(1, more, model.config.hidden_size)
            outputs = model(inputs_embeds=embeds, use_cache=True, **cache_argument(cache_of(outputs)))
            close(decoder.step(embeds[0].numpy(), cache), outputs.logits[0, -1].numpy())


@torch.no_grad()
def test_a_hundred_greedy_steps_are_those_of_generate(tmp_path):
    model = random_model("qwen3")
    decoder = written(model, tmp_path)
    ids = torch.randint(0, 97, (1, 11))
    wanted = model.generate(ids, max_new_tokens=100, do_sample=False, eos_token_id=None)[0, 11:].tolist()
    table, cache = model.get_input_embeddings().weight.numpy(), Cache(decoder, 111)
    own = [int(decoder.step(table[ids[0].numpy()], cache).argmax())]
    while len(own) < 100:
        own.append(int(decoder.step(table[own[-1:]], cache).argmax()))
    assert own == wanted


def test_a_tied_head_takes_no_room_of_its_own(tmp_path):
    for name in ("qwen3", "qwen3, tied"):
        (tmp_path / name).mkdir()
        model = random_model(name)
        table = model.get_input_embeddings().weight.detach().numpy()
        with WeightFile(tmp_path / name / "weights.bin") as weights:
            weights.place(table)
            before = (tmp_path / name / "weights.bin").stat().st_size
            graph, _ = write_decoder(
                model, weights.tensor, FusedDialect(), "decoder.onnx", product=Dense(), positions=POSITIONS
            )
            place = weights.place(table)
        head = next(tensor for tensor in graph.graph.initializer if tensor.name == "lm_head.weight")
        offset = next(int(entry.value) for entry in head.external_data if entry.key == "offset")
        assert (offset == place.offset) == (name == "qwen3, tied")
        assert before == 0 or place.offset == 0


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "fused"])
def test_what_an_engine_besides_onnxruntime_must_accept(tmp_path, dialect):
    """Operators of the standard alone, valid by ONNX's own check, attention with one output, weights shared."""
    written(random_model("qwen3"), tmp_path, DIALECTS[dialect])
    onnx.checker.check_model(tmp_path / "decoder.onnx", full_check=True)
    graph = onnx.load(tmp_path / "decoder.onnx", load_external_data=False).graph
    assert {node.domain for node in graph.node} == {""}
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    assert all(len(node.output) == 1 and not node.attribute for node in attentions)
    assert len(attentions) == (0 if dialect == "primitive" else 3)
    assert "attention_mask" in [value.name for value in graph.input]


@pytest.mark.parametrize("dialect", DIALECTS)
@torch.no_grad()
def test_half_precision_keeps_its_cache_in_halves_and_speaks_in_singles(tmp_path, dialect):
    model = random_model("qwen3")
    decoder = written(model, tmp_path, DIALECTS[dialect], "float16")
    graph = onnx.load(tmp_path / "decoder.onnx", load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert types["past.0.key"] == types["present.2.value"] == onnx.TensorProto.FLOAT16
    assert types["inputs_embeds"] == types["logits"] == onnx.TensorProto.FLOAT
    weights = [tensor.data_type for tensor in graph.initializer if tensor.name.endswith(".weight")]
    assert set(weights) == {onnx.TensorProto.FLOAT16}
    cache, embeds = Cache(decoder, 40), torch.randn(1, 30, 32)
    wanted = model(inputs_embeds=embeds).logits[0].numpy()  # (S, V)
    for start, end in ((0, 25), (25, 26), (26, 30)):
        logits = decoder.step(embeds[0, start:end].numpy(), cache)
        assert np.abs(logits - wanted[end - 1]).max() < 0.02 * np.abs(wanted[end - 1]).max()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (MistralConfig(), "the architecture mistral"),
        (LlamaConfig(**SIZES | {"hidden_act": "gelu"}), "the activation gelu"),
        (
            LlamaConfig(**SIZES | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
            "rope_type linear",
        ),
        (
            LlamaConfig(**SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                       "partial_rotary_factor": 0.5}}),
            "partial_rotary_factor 0.5",
        ),
        (
            Qwen3Config(**SIZES | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
            "sliding_attention",
        ),
        (LlamaConfig(**SIZES | {"head_dim": 12}), "head_dim 12, which is no multiple of 8"),
    ],
)  # fmt: skip
def test_what_the_writer_does_not_know_is_refused_by_name(config, says):
    with pytest.raises(MvlmError, match=says):
        require_supported(config)


def test_all_that_is_unknown_is_said_at_once():
    with pytest.raises(MvlmError, match="architecture mistral, the activation gelu"):
        require_supported(MistralConfig(hidden_act="gelu"))


def test_the_page_on_new_architectures_is_short_and_names_what_there_is():
    page = (Path(__file__).parents[2] / "docs" / "language-models.md").read_text()
    assert len(page.splitlines()) < 100
    for name in ("FAMILIES", "require_supported", "_normed_heads", "_rotary_tables"):
        assert name in page
        assert hasattr(decoder_module, name)
