"""One linear layer as a graph of its own, which the tests use too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor

from export.graphs.dialects import FusedDialect
from export.graphs.weights import WeightFile
from export.graphs.writer import Product, Writer
from export.runtime.backends.onnx import Device, open_session


def one_product(folder: Path, product: Product, weight: Tensor, *, head: bool = False) -> Any:
    """A session that multiplies its input `x` by the weight, as a decoder's layer does or as its head."""
    with WeightFile(folder / "weights.bin") as weights:
        writer = Writer(weights.tensor, product, np.dtype(np.float32))
        y = (product.head if head else product)(writer, "x", weight, "w")
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            writer.nodes, "one", [info("x", TensorProto.FLOAT, [None, weight.shape[1]])],
            [info(y, TensorProto.FLOAT, None)], list(writer.initializers.values()),
        )  # fmt: skip
    opsets = [helper.make_opsetid(*opset) for opset in FusedDialect.opsets]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "one.onnx")
    return open_session(folder / "one.onnx", Device(threads=1))
