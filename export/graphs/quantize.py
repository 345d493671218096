"""Linear layers in each precision: which node multiplies, and how its weights are packed.

Letters: K inputs and N outputs of a layer, V vocabulary, D width. torch keeps weights as (N, K).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from export.runtime.errors import MvlmError

from .writer import Array, Writer

# Weights that share a scale in onnxruntime's blocks. The kernel that multiplies one position spends much of its time on
# what it does once for each block: wide blocks are faster, and coarser.
BLOCK, WIDE_BLOCK = 32, 128
_INT8_PARTS = 127
# The smallest half-precision number above nought: a row of zeros needs a scale too.
_TINY = 2.0**-24


class Dense:
    """Weights in the type that is computed in."""

    by_row: ClassVar[bool] = True

    def __call__(self, writer: Writer, x: str, weight: Tensor, name: str) -> str:
        return writer.node("MatMul", [x, writer.weight(name, weight.T)])

    def rounded(self, weight: Tensor) -> Tensor:
        return weight

    rounded_head = rounded

    def head(self, writer: Writer, x: str, weight: Tensor, name: str) -> str:
        # As transB reads (V, D), a head that is tied to the embedding table shares its bytes.
        return writer.node("Gemm", [x, writer.weight(name, weight)], attributes={"transB": 1})


@dataclass(frozen=True)
class Blocks:
    """onnxruntime's MatMulNBits: `bits` (4 or 8) a weight, a scale for each `block` of a row.

    Activations are quantised to 8 bits by blocks in the kernel (accuracy level 4), which is what makes it fast.
    """

    bits: int
    block: int = BLOCK

    @property
    def by_row(self) -> bool:
        # Wide blocks are added up in another order for one position than for several (onnxruntime 1.31). The last digit
        # of a sum may then round to the next of the 8 bits in the layer behind, and a long answer take another way.
        return self.block == BLOCK

    def __call__(self, writer: Writer, x: str, weight: Tensor, name: str) -> str:
        n, k = weight.shape
        packed, scale = pack_blocks(_numbers(weight), self.bits, self.block)
        name = f"{name}.int{self.bits}"
        inputs = [x, writer.store(name, packed), writer.store(f"{name}.scale", scale.astype(writer.floats))]
        attributes = {"K": k, "N": n, "bits": self.bits, "block_size": self.block, "accuracy_level": 4}
        return writer.node("MatMulNBits", inputs, domain="com.microsoft", attributes=attributes)

    def rounded(self, weight: Tensor) -> Tensor:
        return _rounded_blocks(weight, self.bits, self.block)

    head, rounded_head = __call__, rounded


@dataclass(frozen=True)
class DynamicInt8:
    """onnxruntime's DynamicQuantizeMatMul: a scale for each output, activations quantised as they come.

    All positions of a step share one scale. The head multiplies one position, where that would buy nothing; it is
    `Blocks` of 8 bits.
    """

    by_row: ClassVar[bool] = False

    def __call__(self, writer: Writer, x: str, weight: Tensor, name: str) -> str:
        numbers, scale = per_output(_numbers(weight))
        name = f"{name}.int8"
        inputs = [x, writer.store(name, numbers.T), writer.store(f"{name}.scale", scale.astype(writer.floats))]
        return writer.node("DynamicQuantizeMatMul", inputs, domain="com.microsoft")

    def rounded(self, weight: Tensor) -> Tensor:
        return _rounded_outputs(weight)

    def rounded_head(self, weight: Tensor) -> Tensor:
        return Blocks(8).rounded(weight)

    def head(self, writer: Writer, x: str, weight: Tensor, name: str) -> str:
        return Blocks(8).head(writer, x, weight, name)


@dataclass(frozen=True)
class StoredInt8:
    """Weights in 8 bits with a scale for each output; the engine multiplies in floats (DequantizeLinear, MatMul)."""

    by_row: ClassVar[bool] = True

    def __call__(self, writer: Writer, x: str, weight: Tensor, name: str) -> str:
        numbers, scale = per_output(_numbers(weight))
        name = f"{name}.int8"
        inputs = [writer.store(name, numbers.T), writer.store(f"{name}.scale", scale.astype(writer.floats))]
        return writer.node("MatMul", [x, writer.node("DequantizeLinear", inputs, attributes={"axis": 1})])

    def rounded(self, weight: Tensor) -> Tensor:
        return _rounded_outputs(weight)

    head, rounded_head = __call__, rounded


@dataclass(frozen=True)
class StoredInt4:
    """Weights in 4 bits with a scale for each block of inputs; opset 21 is the first that can say so.

    TensorRT wants whole blocks; the largest of `blocks` that divides the inputs is taken.
    """

    by_row: ClassVar[bool] = True
    blocks: tuple[int, ...] = (128, 64, 32, 16)

    def __call__(self, writer: Writer, x: str, weight: Tensor, name: str) -> str:
        n, k = weight.shape
        block = self._block(k)
        numbers, scale = per_block(_numbers(weight), 4, block)
        name = f"{name}.int4"
        flat = numbers.T.reshape(-1).astype(np.uint8) & 0xF  # (K N), the earlier number in the lower half of a byte
        stored = writer.store(name, flat[::2] | flat[1::2] << 4, TensorProto.INT4, (k, n))
        inputs = [stored, writer.store(f"{name}.scale", scale.T.astype(writer.floats))]
        attributes = {"axis": 0, "block_size": block}
        return writer.node("MatMul", [x, writer.node("DequantizeLinear", inputs, attributes=attributes)])

    def rounded(self, weight: Tensor) -> Tensor:
        return _rounded_blocks(weight, 4, self._block(weight.shape[1]))

    def _block(self, k: int) -> int:
        block = next((block for block in self.blocks if k % block == 0), None)
        if block is None:
            raise MvlmError(f"a layer has {k} inputs, which no block of four-bit weights divides: ask for int8")
        return block

    head, rounded_head = __call__, rounded


def per_output(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(N, K) -> numbers (N, K) and scales (N,), so that number times scale is nearest to the weight."""
    scale = np.maximum(np.abs(weight).max(axis=1) / _INT8_PARTS, _TINY).astype(np.float32)  # (N,)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


def per_block(weight: NDArray[np.float32], bits: int, block: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(N, K) -> numbers (N, K) and scales (N, K / block), for a `block` that divides K.

    The number of largest size in a block becomes the lowest of the range, which has one more step below nought than
    above (as in llama.cpp's Q4_0).
    """
    n, k = weight.shape
    blocks = weight.reshape(n, k // block, block)
    at = np.abs(blocks).argmax(axis=2)[..., None]
    lowest = -(2 ** (bits - 1))
    scale = np.take_along_axis(blocks, at, axis=2) / np.float32(lowest)  # (N, K / block, 1)
    scale = np.where(np.abs(scale) < _TINY, np.float32(_TINY), scale)
    numbers = np.clip(np.rint(blocks / scale), lowest, -lowest - 1)
    return numbers.astype(np.int8).reshape(n, k), scale[..., 0]


def pack_blocks(weight: NDArray[np.float32], bits: int, block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """What MatMulNBits reads: unsigned numbers (N, K / block, bytes of a block) and scales (N, K / block)."""
    numbers, scale = per_block(_filled(weight, block), bits, block)
    shifted = (numbers.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8).reshape(*scale.shape, block)
    if bits == 4:
        shifted = shifted[..., ::2] | shifted[..., 1::2] << 4  # the earlier number in the lower half of a byte
    return shifted, scale


def _rounded_outputs(weight: Tensor) -> Tensor:
    numbers, scale = per_output(_numbers(weight))
    return torch.from_numpy(numbers * scale[:, None])


def _rounded_blocks(weight: Tensor, bits: int, block: int) -> Tensor:
    n, k = weight.shape
    numbers, scale = per_block(_filled(_numbers(weight), block), bits, block)
    return torch.from_numpy((numbers.reshape(*scale.shape, block) * scale[..., None]).reshape(n, -1)[:, :k].copy())


def _filled(weight: Array, block: int) -> Array:
    """Rows made up with noughts to whole blocks; MatMulNBits skips what it knows to be beyond K."""
    return np.pad(weight, ((0, 0), (0, -weight.shape[1] % block)))


def _numbers(weight: Tensor) -> Array:
    return weight.detach().float().cpu().numpy()
