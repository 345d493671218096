"""Verification passes what is right, and nothing else."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from bundles import Made, pool_bundle, query_bundle
from onnx import numpy_helper
from tiny import one_question

from export import verify as verification
from export.bundle import reseal
from export.runtime import CheckFailed, MvlmError
from export.verify import TOLERANCE, Difference, sample_rows, verify_bundle
from mvlm_core.rows import read_rows

FAMILIES = {"pool, resnet, qwen3": pool_bundle, "query, clip, llama": query_bundle}
EVERY_PART = [
    "vision_tower", "connector", "language_model.model.embed_tokens", "language_model.model.layers.0.self_attn.q_proj",
    "language_model.model.layers.1.self_attn.v_proj", "language_model.model.layers.1.self_attn.o_proj",
    "language_model.model.layers.0.mlp.down_proj", "language_model.model.layers.1.input_layernorm",
    "language_model.model.norm", "language_model.lm_head",
]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def made(request) -> Made:
    return request.param()


def verify(made: Made, bundle=None, scales=(4, 9), rows: int = 1) -> dict:
    source, steps = replace(made.source, scales=scales), []
    report = verify_bundle(source, bundle or made.bundle, sample_rows(read_rows(made.rows), rows), steps.append)
    assert sum(steps) == rows * len(scales)
    return report


@contextmanager
def one_weight_changed(model: torch.nn.Module, part: str):
    """Change one number of the largest tensor of a part (where it is tied, of both), and put it back."""
    tensors = [
        tensor for name, tensor in model.state_dict().items() if name.startswith(part) and tensor.is_floating_point()
    ]
    tensor = max(tensors, key=torch.numel)
    before = tensor.clone()
    tensor.view(-1)[tensor.numel() // 2] += 0.5
    try:
        yield
    finally:
        tensor.copy_(before)


def test_what_was_compared_is_in_the_report(made):
    report = verify(made, scales=made.source.scales, rows=2)
    json.dumps(report, allow_nan=False)
    assert report["rows"] == ["row1", "row5"]
    assert 0 < report["vision"]["max_relative"] <= TOLERANCE["vision"]
    assert list(report["scales"]) == ["1", "4", "9", "36", "144"]
    for scale, facts in report["scales"].items():
        assert facts["answers"] == 2
        assert 0 < facts["answer_tokens"] <= 64
        assert min(facts["prompt_lengths"]) > int(scale)
        assert min(facts["kv_offsets"]) == min(facts["prompt_lengths"])
        assert len(facts["kv_offsets"]) >= 8
        assert facts["connector"]["max_relative"] <= TOLERANCE["connector"]  # none at all where it pools nothing
        for phase in ("prefill", "decode"):
            assert 0 < facts[phase]["max_relative"] <= TOLERANCE[phase]


@pytest.mark.parametrize("part", EVERY_PART)
def test_one_weight_changed_between_export_and_verification(part):
    made = pool_bundle()
    with one_weight_changed(made.source.model, part), pytest.raises(CheckFailed, match="do not compute what the model"):
        verify(made)


def test_two_connectors_swapped(made, tmp_path):
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")
    (bundle / "connector_4.onnx").rename(bundle / "x")
    (bundle / "connector_9.onnx").rename(bundle / "connector_4.onnx")
    (bundle / "x").rename(bundle / "connector_9.onnx")
    reseal(bundle)
    with pytest.raises(CheckFailed, match=r"scale 4, connector differs by inf.*; scale 9, connector differs by inf"):
        verify(made, bundle)


def test_tables_of_rotary_positions_shifted_by_one(made, tmp_path):
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")

    def shift(model):
        for tensor in model.graph.initializer:
            if tensor.name.startswith("rotary."):
                table = np.roll(numpy_helper.to_array(tensor), 1, axis=0)
                tensor.CopyFrom(numpy_helper.from_array(table, tensor.name))

    rewrite(bundle, shift)
    with pytest.raises(CheckFailed, match="prefill differs"):
        verify(made, bundle)


def test_another_activation(made, tmp_path):
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")

    def change(model):
        node = next(node for node in model.graph.node if node.op_type == "QuickGelu")
        node.attribute[0].f = 1.702

    rewrite(bundle, change)
    with pytest.raises(CheckFailed, match="decode differs"):
        verify(made, bundle)


def test_an_answer_that_is_cut_off(made, tmp_path):
    """Every number is right, and the answer is not: only the real runtime, from picture to text, shows it."""
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["stop_ids"] = list(range(manifest["embedding"]["shape"][0]))
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    reseal(bundle)
    with pytest.raises(CheckFailed, match="scale 4, 1 answers are others") as caught:
        verify(made, bundle)
    assert "differs by" not in str(caught.value)


def test_a_row_that_does_not_fit_the_decoder(made):
    row = one_question("long", made.picture(0), "what " * 600, "red")
    with pytest.raises(MvlmError, match="the decoder has 512"):
        verify_bundle(made.source, made.bundle, [row], lambda steps: None)


@pytest.mark.parametrize(("small", "threads"), [(10**9, 1), (0, 2)])
def test_small_models_are_followed_on_one_thread(made, monkeypatch, small, threads):
    before, seen = torch.get_num_threads(), set()
    monkeypatch.setattr(verification, "_SMALL_WEIGHTS", small)
    torch.set_num_threads(2)
    try:
        rows = sample_rows(read_rows(made.rows), 1)
        verify_bundle(
            replace(made.source, scales=(4,)), made.bundle, rows, lambda steps: seen.add(torch.get_num_threads())
        )
        assert seen == {threads}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_differences_are_the_largest_and_nothing_hides():
    seen = Difference()
    seen.see(torch.tensor([10.0, 0]), np.asarray([10.5, 0], np.float32))
    seen.see(torch.tensor([1.0, 0]), np.asarray([1.0, 0], np.float32))
    assert (seen.max_abs, seen.max_relative) == (0.5, 0.05)
    seen.see(torch.tensor([1.0, 0]), np.asarray([1.0, np.nan], np.float32))
    assert not seen.max_relative <= 1
    seen.see(torch.tensor([1.0]), np.asarray([1.0], np.float32))
    assert not seen.max_relative <= 1
    seen = Difference()
    seen.see(torch.ones(2, 1), np.ones((1, 2), np.float32))
    assert seen.max_relative == float("inf")


def test_samples_are_spread_over_the_test_split(made):
    rows = read_rows(made.rows)
    assert [row.id for row in sample_rows(rows, 2)] == ["row1", "row5"]
    assert [row.id for row in sample_rows(rows, 99)] == ["row1", "row3", "row5"]
    assert len(sample_rows([row for row in rows if row.split == "val"], 2)) == 2


def rewrite(bundle, change) -> None:
    file = bundle / "decoder.onnx"
    model = onnx.load(file)
    change(model)
    onnx.save(model, file)  # with its weights inside
    reseal(bundle)
