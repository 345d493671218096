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
from onnx import numpy_helper

from export.bundle import verify as verification
from export.bundle.fidelity import Fidelity
from export.bundle.files import reseal
from export.bundle.tolerance import TOLERANCES, coarsest, points_lost
from export.bundle.verify import Difference, sample_rows, verify_bundle
from export.runtime import CheckFailed, MvlmError
from export.runtime.backends import onnx as sessions
from export.runtime.backends.onnx import step_inputs
from export.runtime.features import image_features
from mvlm_core.data.reading import read_rows
from tests.support.bundles import Made, bundle_for, nested_pool_bundle, pool_bundle, query_bundle
from tests.support.tiny import one_question

# What these models of a few thousand random weights lose by 4 bits is no measure of anything.
LOSS = 9.0
EXACT = TOLERANCES["float32"].relative
FAMILIES = {
    "pool, resnet, qwen3": pool_bundle, "nested_pool, resnet, llama": nested_pool_bundle,
    "query, clip, llama": query_bundle,
}  # fmt: skip
EVERY_PART = [
    "vision_tower", "connector", "language_model.model.embed_tokens", "language_model.model.layers.0.self_attn.q_proj",
    "language_model.model.layers.1.self_attn.v_proj", "language_model.model.layers.1.self_attn.o_proj",
    "language_model.model.layers.0.mlp.down_proj", "language_model.model.layers.1.input_layernorm",
    "language_model.model.norm", "language_model.lm_head",
]  # fmt: skip


# A bundle of each dialect, form of cache and precision, all of the query family; float32 of both is `made`.
OTHERS = {
    "int8": ("ort-cpu", "tower=int8,int8"),
    "int4": ("ort-cpu", "int4"),
    "int4, wide blocks": ("ort-cpu", "int4-fast"),
    "two graphs": ("ort-cpu", "prefill=int8,decode=int4"),
    "primitive": ("onnx", None),
    "jetpack": ("jetpack-6.2", "int8"),
    "scatter": ("rtx", None),
    "scatter, int4": ("jetpack-7.2", "int4"),
}


@pytest.fixture(scope="module", params=OTHERS.values(), ids=OTHERS)
def other(request) -> Made:
    return bundle_for(query_bundle(), *request.param)


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def made(request) -> Made:
    return request.param()


def verify(made: Made, bundle=None, scales=(4, 9), rows: int = 1) -> dict:
    source, steps = replace(made.source, scales=scales), []
    report = verify_bundle(source, bundle or made.bundle, sample_rows(read_rows(made.rows), rows), steps.append, LOSS)
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
    assert 0 < report["vision"]["max_relative"] <= EXACT
    assert list(report["scales"]) == ["1", "4", "9", "36", "144"]
    for scale, facts in report["scales"].items():
        assert facts["answers"] == 2
        assert 0 < facts["answer_tokens"] <= 64
        assert min(facts["prompt_lengths"]) > int(scale)
        assert min(facts["kv_offsets"]) == min(facts["prompt_lengths"])
        assert len(facts["kv_offsets"]) >= 8
        assert facts["connector"]["max_relative"] <= EXACT  # none at all where it pools nothing
        for phase in ("prefill", "decode"):
            assert 0 < facts[phase]["max_relative"] <= EXACT


@pytest.mark.parametrize("part", EVERY_PART)
def test_one_weight_changed_between_export_and_verification(part):
    made = pool_bundle()
    with one_weight_changed(made.source.model, part), pytest.raises(CheckFailed, match="do not compute what the model"):
        verify(made)


def test_one_number_of_a_nested_pool_connectors_rows_changed():
    made = nested_pool_bundle()
    basis, place = made.source.model.connector.basis, (3, 0)  # of the fourth token
    before = float(basis[place])
    basis[place] += 0.1
    try:
        with pytest.raises(CheckFailed, match="scale 4, connector in float32 differs"):
            verify(made)
    finally:
        basis[place] = before
    verify(made)


def test_every_dialect_and_precision_passes(other):
    report = verify(other, rows=2)
    precision = json.loads((other.bundle / "bundle.json").read_text())["precision"]
    for phase in ("prefill", "decode"):
        for facts in report["scales"].values():
            assert 0 < facts[phase]["max_relative"] <= TOLERANCES[precision[phase]].relative
    assert report["router"] == {"asked": 2, "same": 2}


def test_one_weight_changed_in_any_precision(other):
    """In 8 and 4 bits too, where the logits alone would not show it."""
    for part in ("vision_tower", "language_model.model.embed_tokens", "language_model.model.layers.1.mlp.up_proj"):
        with one_weight_changed(other.source.model, part), pytest.raises(CheckFailed):
            verify(other, scales=(4,))


def test_rotary_tables_shifted_in_any_precision(other, tmp_path):
    bundle = shutil.copytree(other.bundle, tmp_path / "bundle")
    rewrite(bundle, shift_rotary)
    with pytest.raises(CheckFailed, match=r"prefill in \S+ differs"):
        verify(other, bundle)


def test_chances_that_move_by_more_than_is_allowed(other):
    """By the arithmetic of the definition, from what torch and the real runtime say."""
    facts = verify(other, scales=(4,), rows=2)["scales"]["4"]["fidelity"]
    assert 0 <= facts["kl"]["low"] <= facts["kl"]["mean"] <= facts["kl"]["high"]
    assert 0 <= facts["top1"]["mean"] <= 1
    source, rows = replace(other.source, scales=(4,)), sample_rows(read_rows(other.rows), 2)
    less = facts["kl"]["mean"] * 0.99
    with pytest.raises(CheckFailed, match=r"scale 4, the chances of the next token moved by \S+ nats \(interval"):
        verify_bundle(source, other.bundle, rows, lambda steps: None, less)
    assert verify_bundle(source, other.bundle, rows, lambda steps: None, less * 1.02)["max_loss"] == less * 1.02


def test_divergence_and_nats_by_hand():
    seen = Fidelity()
    one, other = torch.tensor([[0.0, 0, 0]]), torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    seen.see(one, other, torch.tensor([1]))
    np.testing.assert_allclose(seen.kl, [(np.log(2 / 3) + 2 * np.log(4 / 3)) / 3], rtol=1e-6)
    np.testing.assert_allclose(seen.nats, [np.log(4 / 3)], rtol=1e-6)
    assert (seen.first, seen.top1) == (seen.kl, [1.0])


def test_a_mask_off_by_one_in_any_dialect(other, tmp_path):
    bundle = shutil.copytree(other.bundle, tmp_path / "bundle")
    rewrite(bundle, shift_mask)
    with pytest.raises(CheckFailed, match=r"decode in \S+ differs|do not run"):
        verify(other, bundle)


def test_a_mask_off_by_one_in_the_runtime(other, monkeypatch):
    def late(facts, used, steps):
        return step_inputs(facts, used, steps) | {"attention_mask": np.roll(mask_of(facts, used, steps), 1, axis=-1)}

    if "attention_mask" not in other_inputs(other):
        pytest.skip("this dialect asks for no mask")
    monkeypatch.setattr(sessions, "step_inputs", late)
    with pytest.raises(CheckFailed, match="differs"):
        verify(other)


def test_two_connectors_swapped(made, tmp_path):
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")
    (bundle / "connector_4.onnx").rename(bundle / "x")
    (bundle / "connector_9.onnx").rename(bundle / "connector_4.onnx")
    (bundle / "x").rename(bundle / "connector_9.onnx")
    reseal(bundle)
    with pytest.raises(MvlmError, match=r"connector_4.onnx gives \(1, 9, \d+\) and not \(1, 4, \d+\)"):
        verify(made, bundle)


def test_tables_of_rotary_positions_shifted_by_one(made, tmp_path):
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")

    rewrite(bundle, shift_rotary)
    with pytest.raises(CheckFailed, match="prefill in float32 differs"):
        verify(made, bundle)


def test_another_activation(made, tmp_path):
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")

    def change(model):
        node = next(node for node in model.graph.node if node.op_type == "QuickGelu")
        node.attribute[0].f = 1.702

    rewrite(bundle, change)
    with pytest.raises(CheckFailed, match="decode in float32 differs"):
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


def test_a_tensor_and_a_node_that_do_not_belong_are_named(tmp_path):
    made = bundle_for(query_bundle(), "ort-cpu", "int4")
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")

    def change(model):
        tensor = next(t for t in model.graph.initializer if t.name == "layers.1.mlp.up_proj.weight.int4")
        packed = numpy_helper.to_array(tensor).copy()
        packed[3, 0, 2] ^= 1  # the lowest bit of one number
        tensor.CopyFrom(numpy_helper.from_array(packed, tensor.name))
        model.graph.node[-1].name = "another"

    rewrite(bundle, change)
    with pytest.raises(CheckFailed) as caught:
        verify(made, bundle)
    assert "decoder.onnx: layers.1.mlp.up_proj.weight.int4 is not the model's" in str(caught.value)
    assert "is another node" in str(caught.value)


def test_answers_that_lose_accuracy(made, monkeypatch):
    """Only what the interval is sure of counts against a bundle."""
    monkeypatch.setattr(verification, "score_row", lambda *_, finest: next(scores))
    scores = iter([1.0, 0.0] * 3)
    with pytest.raises(CheckFailed, match=r"scale 4, 100\.0 points of accuracy are lost \(interval 100\.0 to 100\.0\)"):
        verify(made, scales=(4,), rows=3)
    scores = iter([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    assert verify(made, scales=(4,), rows=3)["scales"]["4"]["points_lost"]["points"] == 0


def test_a_router_that_chooses_otherwise(made, monkeypatch):
    monkeypatch.setattr(verification, "image_features", lambda words: -1e3 * image_features(words))
    with pytest.raises(CheckFailed, match="the router chooses otherwise for"):
        verify(made, rows=3)


def test_points_lost_and_their_interval():
    lost = points_lost([1, 1, 0, 1], [1, 0, 0, 1], ["a", "b", "c", "d"])
    assert lost.points == 25
    assert lost.low == 0 < lost.points < lost.high <= 100
    together = points_lost([1, 1, 1, 1], [0, 0, 1, 1], ["a", "a", "b", "b"])
    assert (together.low, together.high) == (0, 100)
    gained = points_lost([0, 0], [1, 1], ["a", "b"])
    assert (gained.points, gained.low, gained.high) == (-100, -100, -100)


def test_the_coarsest_part_sets_what_an_answer_may_be():
    assert coarsest(["float32", "int4", "int8"]) is TOLERANCES["int4"]
    assert coarsest(["float32", "float32"]) is TOLERANCES["float32"]


def test_no_rows_and_another_run(made):
    with pytest.raises(MvlmError, match="no rows to verify with"):
        verify_bundle(made.source, made.bundle, [], lambda steps: None)
    stranger = replace(made.source, model_sha256="another")
    with pytest.raises(MvlmError, match="was made from another run"):
        verify_bundle(stranger, made.bundle, sample_rows(read_rows(made.rows), 1), lambda steps: None)


def shift_rotary(model) -> None:
    for tensor in model.graph.initializer:
        if tensor.name.startswith("rotary."):
            table = np.roll(numpy_helper.to_array(tensor), 1, axis=0)
            tensor.CopyFrom(numpy_helper.from_array(table, tensor.name))


def shift_mask(model) -> None:
    """Let each position of a step see one position less: its own is hidden."""
    graph = model.graph
    name = "seqlens_k" if any(value.name == "seqlens_k" for value in graph.input) else "attention_mask"
    for node in graph.node:
        node.input[:] = [f"{name}.shifted" if read == name else read for read in node.input]
    if name == "seqlens_k":
        graph.initializer.append(numpy_helper.from_array(np.asarray([1], np.int32), "one"))
        added = [onnx.helper.make_node("Sub", [name, "one"], [f"{name}.shifted"])]
    else:
        graph.initializer.append(numpy_helper.from_array(np.asarray([0], np.int64), "nought"))
        graph.initializer.append(numpy_helper.from_array(np.asarray([1], np.int64), "one"))
        graph.initializer.append(numpy_helper.from_array(np.asarray([3], np.int64), "across"))
        added = [  # every position is told what the next one may see: its own is hidden, the last one's is the first's
            onnx.helper.make_node("Slice", [name, "one", "far", "across"], ["mask.tail"]),
            onnx.helper.make_node("Slice", [name, "nought", "one", "across"], ["mask.head"]),
            onnx.helper.make_node("Concat", ["mask.tail", "mask.head"], [f"{name}.shifted"], axis=3),
        ]
        graph.initializer.append(numpy_helper.from_array(np.asarray([2**31], np.int64), "far"))
    for node in reversed(added):
        graph.node.insert(0, node)


def mask_of(facts, used: int, steps: int):
    return step_inputs(facts, used, steps)["attention_mask"]


def other_inputs(other: Made) -> dict:
    return json.loads((other.bundle / "bundle.json").read_text())["graphs"]["decoder"]["graph"]["inputs"]


def rewrite(bundle, change) -> None:
    """Change the graphs of the language model, and let the manifest answer for what they are now."""
    for file in (bundle / "decoder.onnx", bundle / "prefill.onnx"):
        if file.is_file():
            model = onnx.load(file)
            change(model)
            onnx.save(model, file)  # with its weights inside
    reseal(bundle)


def test_questions_of_conversations_are_asked_by_themselves(made, tmp_path):
    """Rows with a system text, and with several pictures: each question about a picture is one to verify with."""
    shown = [{"type": "image", "image": str(made.picture(number))} for number in range(2)]
    told = [{"role": "assistant", "content": "red"}]
    brief = {"role": "system", "content": "Be brief."}
    lines = [
        {"id": "system", "messages": [brief, {"role": "user", "content": [shown[0], says("what?")]}, *told]},
        {"id": "two", "messages": [{"role": "user", "content": [*shown, says("alike?")]}, *told]},
    ]
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps(line | {"split": "test", "group": "g"}) for line in lines)
    )
    rows = sample_rows(read_rows(tmp_path / "rows.jsonl"), 99)
    assert [(row.id, row.question) for row in rows] == [("system", "what?"), ("two@0", "alike?"), ("two@1", "alike?")]
    report = verify_bundle(replace(made.source, scales=(4, 9)), made.bundle, rows, lambda steps: None, LOSS)
    assert report["rows"] == ["system", "two@0", "two@1"]


def says(text: str) -> dict:
    return {"type": "text", "text": text}
