"""Linear layers in each form: which node multiplies, and how its numbers are packed.

Letters: K inputs and N outputs of a layer, J blocks of a row, V vocabulary, D width. torch keeps weights as (N, K).
A form is written in a word, as a bundle's manifest has it: `4b32zh` is four bits in blocks of 32 with zero points, its
scales in half precision.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from export.runtime.errors import MvlmError

from .grids import TINY, Grid, Numbers, nearest
from .writer import Array, Form, Writer

# Weights that share a scale in onnxruntime's blocks. The kernel that multiplies one position spends much of its time on
# what it does once for each block: wide blocks are faster, and coarser.
BLOCK, WIDE_BLOCK = 32, 128
_INT8_PARTS, _UINT8_TOP = 127, 255
_LEAST_SCALE = 1e-30  # of activations that are all 0
# Reads what a file holds under a layer's name and an ending, as it was stored.
Stored = Callable[[str], Array]


class Dense:
    """Weights in the type that is computed in."""

    by_row: ClassVar[bool] = True

    def grid_of(self, k: int) -> Grid | None:
        return None

    def read(self, stored: Stored, n: int, k: int) -> Numbers:
        raise NotImplementedError("weights that are rounded in no blocks")

    def __call__(self, writer: Writer, x: str, weight: Tensor, name: str, numbers: Numbers | None = None) -> str:
        return writer.node("MatMul", [x, writer.weight(name, weight.T)])

    def head(self, writer: Writer, x: str, weight: Tensor, name: str, numbers: Numbers | None = None) -> str:
        # As transB reads (V, D), a head that is tied to the embedding table shares its bytes.
        return writer.node("Gemm", [x, writer.weight(name, weight)], attributes={"transB": 1})

    def rounded(self, weight: Tensor) -> Tensor:
        return weight

    def seen(self, x: Tensor, *, one_by_one: bool = False) -> Tensor:
        return x


@dataclass(frozen=True)
class Blocks:
    """onnxruntime's MatMulNBits: `bits` (4 or 8) a weight, a scale for each `block` of a row, zero points or none.

    With `half` the scales lie in the file in half precision, and onnxruntime makes float32 of them as it opens it.
    Activations are quantised to 8 bits by blocks in the kernel (accuracy level 4), which is what makes it fast.
    """

    bits: int
    block: int = BLOCK
    zeros: bool = False
    half: bool = False

    def grid_of(self, k: int) -> Grid:
        return Grid(self.bits, self.block, self.zeros, self.half)

    @property
    def by_row(self) -> bool:
        # Wider blocks are added up in another order for one position than for several (onnxruntime 1.31, 1.32). The
        # last digit of a sum may then round to the next of the 8 bits in the layer behind, and a long answer take
        # another way.
        return self.block <= (BLOCK if self.bits == 4 else 2 * BLOCK)

    def __call__(self, writer: Writer, x: str, weight: Tensor, name: str, numbers: Numbers | None = None) -> str:
        n, k = weight.shape
        numbers = numbers or nearest(weight, self.grid_of(k))
        name = f"{name}.int{self.bits}"
        inputs = [x, writer.store(name, packed(numbers.values, self.bits, self.block, numbers.grid.middle))]
        floats = np.dtype(np.float16) if self.half else writer.floats
        scale = writer.store(f"{name}.scale", numbers.scale.numpy().astype(floats))
        inputs.append(scale if floats == writer.floats else writer.cast(scale, writer.floats))
        if self.zeros:
            inputs.append(writer.store(f"{name}.zero", packed(numbers.zero, self.bits, 8 // self.bits, 0)[:, :, 0]))
        attributes = {"K": k, "N": n, "bits": self.bits, "block_size": self.block, "accuracy_level": 4}
        return writer.node("MatMulNBits", inputs, domain="com.microsoft", attributes=attributes)

    head = __call__

    def read(self, stored: Stored, n: int, k: int) -> Numbers:
        """The numbers of a layer in a file, unpacked."""
        name = f".int{self.bits}"
        scale = torch.from_numpy(stored(f"{name}.scale").astype(np.float32)).reshape(n, -1)
        zero = torch.full(scale.shape, 2 ** (self.bits - 1), dtype=torch.uint8)
        if self.zeros:
            zero = self._unpacked(stored(f"{name}.zero"), n)[:, : scale.shape[1]]
        return Numbers(self.grid_of(k), self._unpacked(stored(name), n)[:, :k], scale, zero)

    def _unpacked(self, array: Array, n: int) -> Tensor:
        if self.bits == 8:
            return torch.from_numpy(np.array(array)).reshape(n, -1)
        return torch.from_numpy(np.stack([array & 0xF, array >> 4], axis=-1)).reshape(n, -1)

    def rounded(self, weight: Tensor) -> Tensor:
        return nearest(weight, self.grid_of(weight.shape[1])).restored()

    def seen(self, x: Tensor, *, one_by_one: bool = False) -> Tensor:
        """The activations (…, K) as the kernel multiplies them: 8 bits, a scale for each block of each position."""
        k = x.shape[-1]
        blocks = functional.pad(x, (0, -k % self.block)).unflatten(-1, (-1, self.block))
        scale = blocks.abs().amax(-1, keepdim=True).div_(_INT8_PARTS).clamp_(min=_LEAST_SCALE)
        return ((blocks / scale).round_() * scale).flatten(-2)[..., :k]


class _PerOutput:
    """Weights in 8 bits with a scale for each output."""

    def grid_of(self, k: int) -> Grid | None:
        return None

    def read(self, stored: Stored, n: int, k: int) -> Numbers:
        raise NotImplementedError("weights that are rounded in no blocks")

    def store(self, writer: Writer, weight: Tensor, name: str) -> list[str]:
        numbers, scale = per_output(_floats(weight))
        name = f"{name}.int8"
        return [writer.store(name, numbers.T), writer.store(f"{name}.scale", scale.astype(writer.floats))]

    def rounded(self, weight: Tensor) -> Tensor:
        numbers, scale = per_output(_floats(weight))
        return torch.from_numpy(numbers * scale[:, None])

    def seen(self, x: Tensor, *, one_by_one: bool = False) -> Tensor:
        return x


class DynamicInt8(_PerOutput):
    """onnxruntime's DynamicQuantizeMatMul: a scale for each output, activations quantised as they come.

    All positions of a step share one scale. The head multiplies one position, where that would buy nothing.
    """

    by_row: ClassVar[bool] = False

    def __call__(self, writer: Writer, x: str, weight: Tensor, name: str, numbers: Numbers | None = None) -> str:
        return writer.node("DynamicQuantizeMatMul", [x, *self.store(writer, weight, name)], domain="com.microsoft")

    head = __call__

    def seen(self, x: Tensor, *, one_by_one: bool = False) -> Tensor:
        """The activations as the node multiplies them: one scale and one zero point for all of a step."""
        over = (-1,) if one_by_one else tuple(range(x.dim()))
        low, high = x.amin(over, keepdim=True).clamp(max=0), x.amax(over, keepdim=True).clamp(min=0)
        scale = ((high - low) / _UINT8_TOP).clamp(min=_LEAST_SCALE)
        zero = (-low / scale).round_()
        return ((x / scale).round_() + zero).clamp_(0, _UINT8_TOP).sub_(zero) * scale


class StoredInt8(_PerOutput):
    """Weights in 8 bits with a scale for each output; the engine multiplies in floats (DequantizeLinear, MatMul)."""

    by_row: ClassVar[bool] = True

    def __call__(self, writer: Writer, x: str, weight: Tensor, name: str, numbers: Numbers | None = None) -> str:
        stored = self.store(writer, weight, name)
        return writer.node("MatMul", [x, writer.node("DequantizeLinear", stored, attributes={"axis": 1})])

    head = __call__


@dataclass(frozen=True)
class StoredInt4:
    """Weights in 4 bits with a scale for each block of inputs; opset 21 is the first that can say so.

    TensorRT wants whole blocks; the largest of `blocks` that divides the inputs is taken.
    """

    by_row: ClassVar[bool] = True
    blocks: tuple[int, ...] = (128, 64, 32, 16)

    def __call__(self, writer: Writer, x: str, weight: Tensor, name: str, numbers: Numbers | None = None) -> str:
        n, k = weight.shape
        numbers = numbers or nearest(weight, self.grid_of(k))
        name = f"{name}.int4"
        signed = numbers.values.numpy().astype(np.int8) - np.int8(numbers.grid.middle)
        flat = signed.T.reshape(-1).astype(np.uint8) & 0xF  # (K N), the earlier number in the lower half of a byte
        stored = writer.store(name, flat[::2] | flat[1::2] << 4, TensorProto.INT4, (k, n))
        inputs = [stored, writer.store(f"{name}.scale", numbers.scale.T.numpy().astype(writer.floats))]
        attributes = {"axis": 0, "block_size": numbers.grid.block}
        return writer.node("MatMul", [x, writer.node("DequantizeLinear", inputs, attributes=attributes)])

    head = __call__

    def read(self, stored: Stored, n: int, k: int) -> Numbers:
        """The numbers of a layer in a file, unpacked."""
        grid, flat = self.grid_of(k), stored(".int4")
        values = np.stack([flat & 0xF, flat >> 4], axis=-1).reshape(k, n).T ^ grid.middle
        scale = torch.from_numpy(stored(".int4.scale").astype(np.float32)).reshape(-1, n).T
        zero = torch.full(scale.shape, grid.middle, dtype=torch.uint8)
        return Numbers(grid, torch.from_numpy(values), scale, zero)

    def grid_of(self, k: int) -> Grid:
        """The grid of a layer with K inputs. Raises `MvlmError` where no block divides them."""
        block = next((block for block in self.blocks if k % block == 0), None)
        if block is None:
            raise MvlmError(f"a layer has {k} inputs, which no block of four-bit weights divides: ask for int8")
        return Grid(4, block)

    def rounded(self, weight: Tensor) -> Tensor:
        return nearest(weight, self.grid_of(weight.shape[1])).restored()

    def seen(self, x: Tensor, *, one_by_one: bool = False) -> Tensor:
        return x


_WORDS: dict[str, Callable[[], Form]] = {
    "float": Dense, "dynamic8": DynamicInt8, "stored8": StoredInt8, "stored4": StoredInt4,
}  # fmt: skip
_BLOCKS = re.compile(r"([48])b(16|32|64|128|256)(z?)(h?)")


def form(word: str) -> Form:
    """A form by its word: `float`, `dynamic8`, `stored8`, `stored4`, or bits and block, then `z` with zero
    points and `h` with scales in half precision, as in `4b32zh`.

    Raises `ValueError` for any other word.
    """
    if word in _WORDS:
        return _WORDS[word]()
    found = _BLOCKS.fullmatch(word)
    if not found:
        raise ValueError(f"{word!r} is no form of a layer")
    return Blocks(int(found[1]), int(found[2]), bool(found[3]), bool(found[4]))


def packed(values: Tensor, bits: int, block: int, filling: int) -> NDArray[np.uint8]:
    """What MatMulNBits reads: (N, K) -> (N, J, bytes of a block); of four bits the earlier number in the lower half of
    a byte. Rows are made up to whole blocks; the node skips what it knows to be beyond K.
    """
    n, k = values.shape
    whole = functional.pad(values, (0, -k % block), value=filling).numpy().reshape(n, -1, block)
    return whole if bits == 8 else whole[..., ::2] | whole[..., 1::2] << 4


def per_output(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(N, K) -> numbers (N, K) and scales (N,), so that number times scale is nearest to the weight."""
    scale = np.maximum(np.abs(weight).max(axis=1) / _INT8_PARTS, TINY).astype(np.float32)  # (N,)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


def _floats(weight: Tensor) -> Any:
    return weight.detach().float().cpu().numpy()
