"""Traced towers and connectors, at batches that were not traced."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export.graphs.vision import trace, vision_model
from export.runtime import MvlmError
from tests.support.bundles import FAMILIES, nested_pool_bundle, pool_bundle, query_bundle
from tests.support.tiny import SCALES, SIZE_PX, drawn_picture, tiny_model


def run(file, feeds, names=None):
    return onnxruntime.InferenceSession(file).run(names, feeds)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_any_batch(make, batch):
    made = make()
    model, processor = made.source.model, made.source.processor
    pixels = processor.image_processor([drawn_picture(i) for i in range(batch)])["pixel_values"]
    values = model.encode_images(pixels)
    outputs = run(made.bundle / "vision.onnx", {"pixel_values": pixels.numpy()})
    wanted = [values] if model.config.connector != "query" else [values, model.connector.words(values)]
    assert len(outputs) == len(wanted)
    for output, want in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(output, want.numpy(), atol=1e-5 * float(want.abs().max()))
    for m in SCALES:
        tokens = model.connector.tokens(values, m)
        (output,) = run(made.bundle / f"connector_{m}.onnx", {"values": values.numpy()})
        np.testing.assert_allclose(output, tokens.numpy(), atol=1e-5 * float(tokens.abs().max()))


def test_the_constant_attention_of_a_query_connector_is_folded():
    made = query_bundle()
    graph = onnx.load(made.bundle / "connector_9.onnx", load_external_data=False).graph
    assert "Softmax" not in {node.op_type for node in graph.node}
    heads, patches = made.source.model.config.num_heads, made.source.model.config.grid_side**2
    assert [9, heads, patches] in [list(tensor.dims) for tensor in graph.initializer]
    assert [value.name for value in graph.input] == ["values"]


def test_the_rows_of_a_nested_pool_connector_are_folded_and_shared():
    made = nested_pool_bundle()
    connector = made.source.model.connector
    begins = set()
    for m in SCALES:
        graph = onnx.load(made.bundle / f"connector_{m}.onnx", load_external_data=False).graph
        assert [value.name for value in graph.input] == ["values"]
        assert [node.op_type for node in graph.node] == ["MatMul"]
        (rows,) = graph.initializer
        assert list(rows.dims) == [m, connector.grid_side**2]
        begins.add(next(entry.value for entry in rows.external_data if entry.key == "offset"))
    assert len(begins) == 1
    whole = onnx.load(made.bundle / "connector_36.onnx")
    (rows,) = map(numpy_helper.to_array, whole.graph.initializer)
    np.testing.assert_array_equal(rows, connector.basis[:36].numpy())


def test_the_unused_last_layer_of_a_tower_is_gone():
    made = query_bundle()
    config = made.source.model.config
    graph = onnx.load(made.bundle / "vision.onnx", load_external_data=False).graph
    assert config.vision_feature_layer == -2
    attentions = sum(node.op_type == "Softmax" for node in graph.node)
    assert attentions == config.vision_config.num_hidden_layers - 1


def test_graphs_hold_no_stack_traces():
    for file in (*pool_bundle().bundle.glob("*.onnx"), *query_bundle().bundle.glob("*.onnx")):
        assert b"site-packages" not in file.read_bytes()
        assert file.stat().st_size < 40_000


def test_tracing_says_nothing(capfd, caplog):
    trace(nn.Linear(4, 2), {"x": (torch.randn(2, 4), {0: "batch"})}, ["y"])
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert logging.root.manager.disable == logging.NOTSET


def test_a_module_that_cannot_be_traced():
    class Moody(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(MvlmError, match="Moody cannot be traced to ONNX") as caught:
        trace(Moody(), {"x": (torch.randn(2, 4), {0: "batch"})}, ["y"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("connector", ["pool", "query"])
def test_a_tower_of_convolutions_has_nothing_to_quantise(connector):
    """The connector's own linear layers, which lie in the same graph, are not the tower."""
    with pytest.raises(MvlmError, match="no linear layers, so 8 bits would change nothing: leave tower=int8 out"):
        vision_model(tiny_model(connector, tower="resnet"), SIZE_PX, "int8")
