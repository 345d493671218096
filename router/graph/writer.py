"""A graph that is written node by node, with the inputs and outputs that every router has."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.runtime.routing.router_graph import METADATA_KEY, ROUTER_FORMAT

Floats = NDArray[np.floating]
OPSETS = (("", 17), ("ai.onnx.ml", 3))
_IR_VERSION = 8


@dataclass
class GraphWriter:
    """Nodes and constants by name; every output is a node's name too."""

    num_scales: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    defaults: list[onnx.ValueInfoProto] = field(default_factory=list)
    more_inputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def add(self, op: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def single(self, name: str, value: Floats) -> str:
        """A constant in single precision."""
        return self.constant(name, np.asarray(value).astype(np.float32))

    def default(self, name: str, value: NDArray[Any] | np.generic) -> None:
        """An input that need not be given. A vector stands for any number of scales."""
        self.constant(name, value)
        shape = ["k"] if np.ndim(value) else []
        self.defaults.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def takes(self, name: str, kind: int, shape: list[int | str]) -> None:
        """An input beside those that every router has."""
        self.more_inputs.append(helper.make_tensor_value_info(name, kind, shape))

    def bare(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """A graph that is no router, but a part of one."""
        return self._checked(inputs, outputs, {})

    def model(self, d_image: int, d_question: int, known: dict[str, Any]) -> onnx.ModelProto:
        floats, info = TensorProto.FLOAT, helper.make_tensor_value_info
        inputs = [
            info("image", floats, ["n", d_image]), info("question", floats, ["n", d_question]),
            info("price", floats, []), info("cost", floats, ["n_or_1", "k"]),
            *self.more_inputs, *self.defaults,
        ]  # fmt: skip
        outputs = [
            info("probability", floats, ["n", "k"]), info("choice", TensorProto.INT64, ["n"]),
            info("p_value", floats, ["n"]),
        ]  # fmt: skip
        return self._checked(inputs, outputs, known)

    def _checked(
        self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], known: dict[str, Any]
    ) -> onnx.ModelProto:  # fmt: skip
        graph = helper.make_graph(self.nodes, "router", inputs, outputs, self.constants)
        opsets = [helper.make_opsetid(*opset) for opset in OPSETS]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="mvlm")
        helper.set_model_props(model, {METADATA_KEY: json.dumps({"format_version": ROUTER_FORMAT} | known)})
        onnx.checker.check_model(model, full_check=True)
        return model
