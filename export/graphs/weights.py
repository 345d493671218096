"""One weight file for all graphs of a bundle: each distinct tensor once, wherever it is used and under what name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# Tensors begin at the start of a memory page, so that a runtime can map them instead of reading them.
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie in the file."""

    offset: int
    length: int


class WeightFile:
    """Appends tensors to a file; bytes that are there already are not written again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("xb")
        self._places: dict[bytes, Place] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def place(self, array: NDArray[Any]) -> Place:
        """Write `array` unless its bytes are there, and say where they are."""
        data = np.ascontiguousarray(array).data.cast("B") if array.size else b""
        key = hashlib.blake2b(data).digest()
        if key not in self._places:
            self._file.write(bytes(-self._file.tell() % _PAGE_BYTES))
            self._places[key] = Place(self._file.tell(), len(data))
            self._file.write(data)
        return self._places[key]

    def tensor(
        self, name: str, array: NDArray[Any], onnx_type: int | None = None, shape: Sequence[int] | None = None
    ) -> TensorProto:
        """An initializer called `name` whose bytes lie in the file.

        `onnx_type` and `shape` say what the bytes stand for where that is not what numpy calls them (two 4-bit
        numbers in a byte).
        """
        place = self.place(array)
        return self.tensor_at(name, place, array.dtype, array.shape if shape is None else shape, onnx_type)

    def tensor_at(
        self, name: str, place: Place, dtype: np.dtype[Any], shape: Sequence[int], onnx_type: int | None = None
    ) -> TensorProto:
        """An initializer whose bytes lie at a place of the file."""
        tensor = TensorProto(
            name=name, dims=shape,
            data_type=onnx_type or helper.np_dtype_to_tensor_dtype(dtype), data_location=TensorProto.EXTERNAL,
        )  # fmt: skip
        facts = {"location": self.path.name, "offset": place.offset, "length": place.length}
        for key, value in facts.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def take(self, model: onnx.ModelProto) -> None:
        """Move the initializers of `model` into the file, but for wide integers: shapes, which a reader must see."""
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype.kind == "f" or array.dtype == np.int8:
                tensor.CopyFrom(self.tensor(tensor.name, array))
