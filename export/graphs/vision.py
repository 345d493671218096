"""Vision tower and connectors as thin modules, traced to ONNX.

Letters: B pictures, P patches, m visual tokens, D width of the language model. The batch axis is named `batch`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from export.runtime.errors import MvlmError
from mvlm_core.modeling.connectors import NestedPoolConnector, PoolConnector, QueryConnector
from mvlm_core.modeling.model import MvlmForConditionalGeneration, vision_width

from .quantize import per_output
from .weights import Place, WeightFile

# Tracing may take a size of 1 for a constant, so the batch that is traced has two pictures.
_TRACED_BATCH = 2
_TRACED_TOKENS = 3
# Primitive operators, which every engine knows: opset 20 brought a Gelu that no list of TensorRT 10.3 names, and 23 an
# attention that TensorRT takes in halves only.
_OPSET = 18
_NONE = onnx.TensorProto()


class VisionGraph(nn.Module):
    """The model without its language model: (B, 3, H, W) -> values (B, P, ·) and, if they differ, words (B, P, D)."""

    encode_images: Any = MvlmForConditionalGeneration.encode_images  # it asks for nothing that is not here

    def __init__(self, model: MvlmForConditionalGeneration) -> None:
        super().__init__()
        self.config = model.config
        self.vision_tower = model.vision_tower
        self.connector = model.connector

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        values = self.encode_images(pixel_values)
        if isinstance(self.connector, QueryConnector):
            return values, self.connector.words(values)
        return (values,)


class PoolGraph(nn.Module):
    """One scale of a pooling connector: values (B, P, D) -> tokens (B, m, D)."""

    def __init__(self, connector: PoolConnector, num_visual_tokens: int) -> None:
        super().__init__()
        self.connector = connector
        self.num_visual_tokens = num_visual_tokens

    def forward(self, values: Tensor) -> Tensor:
        return self.connector.tokens(values, self.num_visual_tokens)


class QueryGraph(nn.Module):
    """A query connector whose attention is given: values (B, P, D_vision), (m, H, P) -> tokens (B, m, D)."""

    def __init__(self, connector: QueryConnector) -> None:
        super().__init__()
        self.connector = connector

    def forward(self, values: Tensor, attention: Tensor) -> Tensor:
        return self.connector.gathered(values, attention.transpose(0, 1))


class NestedPoolGraph(nn.Module):
    """A nested_pool connector whose rows are given: values (B, P, D), (m, P) -> tokens (B, m, D)."""

    def forward(self, values: Tensor, basis: Tensor) -> Tensor:
        return basis @ values


class Narrow(nn.Module):
    """A module that computes in other floats than those around it: float32 in, float32 out."""

    def __init__(self, module: nn.Module, floats: torch.dtype) -> None:
        super().__init__()
        self.floats = floats
        self.module = copy.deepcopy(module).to(floats)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...] | Tensor:
        outputs = self.module(*(x.to(self.floats) for x in inputs))
        return tuple(y.float() for y in outputs) if isinstance(outputs, tuple) else outputs.float()


def vision_outputs(model: MvlmForConditionalGeneration) -> dict[str, str]:
    """What the outputs of the vision graph are called: for a connector whose values are words, one serves for both."""
    return {"values": "values", "words": "words" if isinstance(model.connector, QueryConnector) else "values"}


@torch.no_grad()
def vision_model(model: MvlmForConditionalGeneration, size_px: int, precision: str = "float32") -> onnx.ModelProto:
    """The vision tower, with what the connector does to every patch.

    Raises `MvlmError` for a tower that cannot be traced, or that has no linear layers to quantise.
    """
    if precision == "int8" and not any(isinstance(module, nn.Linear) for module in model.vision_tower.modules()):
        raise MvlmError("the vision tower has no linear layers, so 8 bits would change nothing: leave tower=int8 out")
    pixels = torch.randn(_TRACED_BATCH, 3, size_px, size_px)  # (B, 3, H, W)
    names = list(dict.fromkeys(vision_outputs(model).values()))
    graph = trace(_narrowed(VisionGraph(model), precision), {"pixel_values": (pixels, {0: "batch"})}, names)
    if precision == "int8":
        quantize_linears(graph)
    return graph


@torch.no_grad()
def connector_models(
    model: MvlmForConditionalGeneration, scales: Sequence[int], weights: WeightFile, precision: str = "float32"
) -> Iterator[tuple[int, onnx.ModelProto]]:
    """Each scale of the connector, ascending, with its weights in the file."""
    connector, largest = model.connector, max(scales)
    patches, width = connector.grid_side**2, model.config.text_config.hidden_size
    if isinstance(connector, QueryConnector):
        # Its keys hold no picture, so its attention is a constant of the weights.
        attention = connector.attention(largest).transpose(0, 1).contiguous()  # (m, H, P)
        values = torch.randn(_TRACED_BATCH, patches, vision_width(model.config.vision_config))
        graph = _narrowed(QueryGraph(connector), precision)
        yield from _prefix_models(graph, values, {"attention": attention}, scales, weights)
        return
    values = torch.randn(_TRACED_BATCH, patches, width)
    if isinstance(connector, NestedPoolConnector):
        rows = {"basis": connector.basis[:largest]}  # (m, P)
        yield from _prefix_models(_narrowed(NestedPoolGraph(), precision), values, rows, scales, weights)
        return
    for m in sorted(scales):
        graph = trace(_narrowed(PoolGraph(connector, m), precision), {"values": (values, {0: "batch"})}, ["tokens"])
        weights.take(graph)
        yield m, graph


def _prefix_models(
    graph: nn.Module, values: Tensor, rows: Mapping[str, Tensor], scales: Sequence[int], weights: WeightFile
) -> Iterator[tuple[int, onnx.ModelProto]]:
    """A connector whose first m tokens are the same at every scale is traced once, whatever the number of scales.

    `graph` takes the values, and the constants that hold a row for each token. Those of m tokens are the first m rows
    of those of all: every scale's constants begin where the largest one's do.
    """
    inputs: dict[str, tuple[Tensor, dict[int, str]]] = {"values": (values, {0: "batch"})}
    for name, constant in rows.items():
        inputs[name] = torch.rand(_TRACED_TOKENS, *constant.shape[1:]), {0: "tokens"}
    traced = trace(graph, inputs, ["tokens"])
    weights.take(traced)
    whole = {name: weights.place(constant.numpy()) for name, constant in rows.items()}
    for m in sorted(scales):
        model = onnx.ModelProto()
        model.CopyFrom(traced)
        for name, constant in rows.items():
            begin = Place(whole[name].offset, whole[name].length // len(constant) * m)
            shape = (m, *constant.shape[1:])
            _fold(model, weights.tensor_at(name, begin, np.dtype(np.float32), shape))
        yield m, model


def _fold(model: onnx.ModelProto, constant: onnx.TensorProto) -> None:
    """Make an input a constant, and its first axis, called `tokens`, a number wherever it shows."""
    graph = model.graph
    graph.initializer.append(constant)
    graph.input.remove(next(value for value in graph.input if value.name == constant.name))
    del graph.value_info[:]
    for dim in (dim for value in graph.output for dim in value.type.tensor_type.shape.dim):
        if dim.dim_param == "tokens":
            dim.dim_value = constant.dims[0]


def quantize_linears(model: onnx.ModelProto) -> None:
    """Let every product with a constant matrix be onnxruntime's 8-bit one, in place."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    matrices = [n for n in graph.node if n.op_type == "MatMul" and len(constants.get(n.input[1], _NONE).dims) == 2]
    for node in matrices:
        name = node.input[1]
        numbers, scale = per_output(numpy_helper.to_array(constants[name]).T)
        made = [(f"{name}.int8", numbers.T), (f"{name}.scale", scale)]
        graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(array), key) for key, array in made)
        node.op_type, node.domain = "DynamicQuantizeMatMul", "com.microsoft"
        node.input[1:] = [key for key, _ in made]
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _narrowed(module: nn.Module, precision: str) -> nn.Module:
    return Narrow(module, torch.float16) if precision == "float16" else module


def trace(
    module: nn.Module, inputs: Mapping[str, tuple[Tensor, dict[int, str]]], output_names: Sequence[str]
) -> onnx.ModelProto:
    """An ONNX graph of `module`, without the stack traces that the exporter leaves in it.

    `inputs` are examples by name, each with the names of the axes whose size is free.

    Raises `MvlmError` when the exporter cannot follow the module.
    """
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                module.eval(), tuple(example for example, _ in inputs.values()), dynamo=True, verbose=False,
                input_names=list(inputs), output_names=list(output_names), opset_version=_OPSET,
                dynamic_shapes=_shapes_of(module, [axes for _, axes in inputs.values()]),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0][:200]
        raise MvlmError(f"{type(module).__name__} cannot be traced to ONNX ({reason}): use another tower") from None
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
    return model


def _shapes_of(module: nn.Module, axes: list[dict[int, str]]) -> Any:
    """Free axes in the form in which the exporter wants them for this module's arguments."""
    takes_any = isinstance(module, Narrow)
    return (tuple(axes),) if takes_any else tuple(axes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on stdout, in warnings and in logs; whoever exports wants to see one progress bar."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        silence = io.StringIO()
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
