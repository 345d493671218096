"""CUDA's two libraries, without a GPU: the calls that the runtime makes of them, on the host's memory."""

from __future__ import annotations

import ctypes
import functools
from ctypes import CFUNCTYPE, POINTER, c_int, c_size_t, c_void_p
from typing import Any

STREAM = 7


class CudaDouble:
    """libcudart and libcuda on the host's memory, with the prototypes of cuda_runtime_api.h and cuda.h."""

    def __init__(self, capability: tuple[int, int] = (8, 7), name: str = "Orin", driver: int = 12060) -> None:
        self._memory: dict[int, Any] = {}
        self.fails: str | None = None
        out_pointer, out_size, out_int = POINTER(c_void_p), POINTER(c_size_t), POINTER(c_int)
        table = {
            "cudaMalloc": ([out_pointer, c_size_t], self._malloc),
            "cudaFree": ([c_void_p], self._release),
            "cudaMemcpyAsync": ([c_void_p, c_void_p, c_size_t, c_int, c_void_p], self._copy),
            "cudaMemcpy2DAsync": (
                [c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int, c_void_p], self._copy_2d,
            ),
            "cudaMemsetAsync": ([c_void_p, c_int, c_size_t, c_void_p], self._set),
            "cudaStreamCreate": ([out_pointer], lambda out: self._put(out, STREAM)),
            "cudaStreamSynchronize": ([c_void_p], lambda stream: int(stream != STREAM)),
            "cudaMemGetInfo": ([out_size, out_size], lambda free, whole: self._put(free, 1) or self._put(whole, 2)),
            "cudaDriverGetVersion": ([out_int], lambda out: self._put(out, driver)),
            "cudaDeviceGetAttribute": (
                [out_int, c_int, c_int], lambda out, which, device: self._put(out, capability[{75: 0, 76: 1}[which]]),
            ),
        }  # fmt: skip
        for function, (types, does) in table.items():
            setattr(self, function, CFUNCTYPE(c_int, *types)(functools.partial(self._may_fail, function, does)))
        self._said = ctypes.create_string_buffer(b"out of memory")
        self.cudaGetErrorString = CFUNCTYPE(c_void_p, c_int)(lambda status: ctypes.addressof(self._said))
        self.cuDeviceGetName = lambda buffer, size, device: setattr(buffer, "value", name.encode()) or int(not name)

    def allocated(self) -> int:
        return len(self._memory)

    def _may_fail(self, function: str, does: Any, *args: Any) -> int:
        return 2 if function == self.fails else does(*args)

    def _malloc(self, out: Any, size: int) -> int:
        block = ctypes.create_string_buffer(size)
        ctypes.memset(block, 0xFF, size)  # what nobody wrote is no number
        address = ctypes.addressof(block)
        self._memory[address] = block
        return self._put(out, address)

    def _release(self, address: int) -> int:
        del self._memory[address]
        return 0

    def _copy(self, to: int, source: int, size: int, kind: int = 3, stream: int = STREAM) -> int:
        assert stream == STREAM
        if size:
            ctypes.memmove(to, source, size)
        return 0

    def _set(self, to: int, value: int, size: int, stream: int) -> int:
        ctypes.memset(to, value, size)
        return 0

    def _copy_2d(
        self, to: int, to_pitch: int, source: int, pitch: int, width: int, rows: int, kind: int, stream: int
    ) -> int:
        assert width <= min(pitch, to_pitch)
        for row in range(rows):
            self._copy(to + row * to_pitch, source + row * pitch, width)
        return 0

    @staticmethod
    def _put(out: Any, value: int) -> int:
        out[0] = value
        return 0
