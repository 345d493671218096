"""Which operators of ONNX each TensorRT reads, of those that language models and vision towers are made of.

Sources: docs/operators.md of onnx/onnx-tensorrt, which NVIDIA writes for each release, and its Changelog.md for what
lies between two of them. The table of 8.5 with the changelog of 8.6 gives 8.6; that of 9.2 with the changelog up to
10.3 gives 10.3, and up to 10.13 gives 10.13; that of 10.15 stands for 10.15 and later. TensorRT for RTX 1.7 was asked
itself: every graph is built with it in the tests. Where a node is read in some forms only, `LIMITS` says in which.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

_8_6 = frozenset(
    """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten
    Floor Gather GatherElements GatherND Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization
    HardSigmoid HardSwish Identity If InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual
    Log LogSoftmax Loop MatMul Max MaxPool Mean Min Mod Mul Neg NonZero Not OneHot Or Pad Pow PRelu QuantizeLinear
    Range ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    Round Scan ScatterElements ScatterND Shape Sigmoid Sign Sin Size Slice Softmax Softplus SpaceToDepth Split Sqrt
    Squeeze Sub Sum Tan Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
    """.split()  # noqa: SIM905
)
_10_3 = _8_6 | {"CastLike", "DeformConv", "Hardmax", "Reciprocal"}
_10_15 = _10_3 | {"Attention", "Gelu", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}


@dataclass(frozen=True)
class Reader:
    """What one version's parser takes.

    Attributes:
        opset: the highest that it reads, by the head of the same page.
        operators: those of ONNX's own domain; of other domains it takes none.
    """

    opset: int
    operators: frozenset[str]


READERS = {
    (8, 6): Reader(17, _8_6),
    (10, 3): Reader(20, _10_3),
    (10, 13): Reader(20, _10_3),  # the page for 10.13 was not to be had: 20 is sure, from 10.0 on
    (10, 15): Reader(24, _10_15),
}
LIMITS = {
    "Attention": "four dimensions, one output, no past or present, no softcap",
    "TensorScatter": "four dimensions, axis -2",
    "RotaryEmbedding": "position_ids, where given, int64",
    "DequantizeLinear": "zero points of nought",
    "QuantizeLinear": "zero points of nought",
    "LayerNormalization": "its first output only",
}


def reader(version: tuple[int, int]) -> Reader:
    """The table for a version: its own, or that of the last one before it that differs."""
    return READERS[max(known for known in READERS if known <= version)]


def unknown_to(version: tuple[int, int], model: onnx.ModelProto) -> list[str]:
    """Everything in a graph that a TensorRT of this version does not read, in a person's words."""
    known = reader(version)
    wrong = [
        f"opset {opset.version}, where {known.opset} is the highest"
        for opset in model.opset_import
        if opset.domain in ("", "ai.onnx") and opset.version > known.opset
    ]
    functions = {(function.domain, function.name) for function in model.functions}
    nodes = [node for node in _nodes(model) if (node.domain, node.op_type) not in functions]
    wrong += sorted({f"{node.domain}:{node.op_type}" for node in nodes if node.domain not in ("", "ai.onnx")})
    own = {node.op_type for node in nodes if node.domain in ("", "ai.onnx")}
    wrong += sorted(own - known.operators)
    return wrong + sorted({f"{node.op_type} with more than {LIMITS[node.op_type]}" for node in nodes if _beyond(node)})


def _beyond(node: onnx.NodeProto) -> bool:
    """Whether a node asks for more than its limits, as far as the node alone tells."""
    if node.op_type == "Attention":
        softcap = any(attribute.name == "softcap" and attribute.f for attribute in node.attribute)
        return len([name for name in node.output if name]) > 1 or any(node.input[4:]) or softcap
    if node.op_type == "TensorScatter":
        return any(attribute.name == "axis" and attribute.i != -2 for attribute in node.attribute)
    if node.op_type == "LayerNormalization":
        return len([name for name in node.output if name]) > 1
    return False


def _nodes(model: onnx.ModelProto) -> Iterable[onnx.NodeProto]:
    """Every node, those inside of local functions and of branches too."""
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        pending += [inner for attribute in node.attribute for inner in attribute.g.node]
