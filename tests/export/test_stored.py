"""A run in half precision is exported as it lies there: the same files as of its float32 copy, and no copy is made."""

from __future__ import annotations

import copy

import pytest
import torch

from export.bundle.source import read_source
from export.bundle.stored import compute_in_float32
from export.graphs.decoder import write_decoder
from export.graphs.targets import plan
from export.rounding.calibrate import calibrate
from export.rounding.sensitivity import losses
from mvlm_core.checkpoints.run_folder import load_run
from tests.support.tiny import SIZE_PX, tiny_model, tiny_processor


@pytest.fixture(params=["float16", "bfloat16"])
def run(request, tmp_path):
    processor = tiny_processor()
    model = tiny_model(processor=processor).to(getattr(torch, request.param))
    model.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def arrays(model):
    """Everything that a decoder's file would hold."""
    asked, found = plan("ort-cpu", "int4", None, 64), {}

    def keep(name, array, onnx_type=None, shape=None):
        from onnx import TensorProto

        found[name] = array.tobytes()
        return TensorProto(name=name)

    write_decoder(model, keep, asked.target.writer_dialect(64), "x", product=asked.recipe("decode"), positions=64)
    return found


def test_halves_compute_and_are_written_as_their_float32(run):
    stored = read_source(run, None, [4]).model
    wide, _ = load_run(run)
    language: object = stored.language_model
    halves = [weight.dtype for name, weight in stored.named_parameters() if name.endswith("_proj.weight")]
    assert set(halves) == {stored.language_model.lm_head.weight.dtype} != {torch.float32}
    pixels = torch.randn(1, 3, SIZE_PX, SIZE_PX)
    ids = torch.tensor([[3, 5, 7]])
    embeds = stored.get_input_embeddings()(ids)
    assert embeds.dtype == torch.float32
    with torch.no_grad():
        wanted = wide.language_model(inputs_embeds=wide.get_input_embeddings()(ids)).logits
        torch.testing.assert_close(stored.language_model(inputs_embeds=embeds).logits, wanted)
        torch.testing.assert_close(stored.encode_images(pixels), wide.encode_images(pixels))
    assert arrays(language) == arrays(wide.language_model)


def test_few_bits_are_chosen_and_fitted_alike(run):
    stored, (wide, _) = read_source(run, None, [4]).model, load_run(run)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, 12, 32, generator=generator) for _ in range(3)]
    found = [
        losses(model.language_model, [(row, 0) for row in rows], ["4b32zh", "dynamic8"], lambda steps: None)
        for model in (stored, wide)
    ]
    for layer, by_form in found[1].items():
        assert found[0][layer] == pytest.approx(by_form, rel=1e-3)
    numbers = [calibrate(m.language_model, rows, {"*": "4b32zh"}, lambda steps: None) for m in (stored, wide)]
    assert len(numbers[0]) > 1
    assert set(numbers[0]) == set(numbers[1])
    for layer in numbers[0]:
        torch.testing.assert_close(numbers[0][layer].restored(), numbers[1][layer].restored(), atol=0.05, rtol=0)


def test_float32_stays_as_it_is():
    model = tiny_model()
    kinds = [type(module) for module in copy.deepcopy(model).modules()]
    compute_in_float32(model)
    assert [type(module) for module in model.modules()] == kinds
