"""The few calls of CUDA's runtime that a TensorRT session needs, through ctypes: where TensorRT is, the library is.

Prototypes are those of cuda_runtime_api.h, and are the same in CUDA 11, 12 and 13. Sizes are bytes, addresses ints.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from typing import Any

from numpy.typing import NDArray

from export.runtime.errors import MvlmError

_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
_DRIVER = "libcuda.so.1"
_TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor, …Minor
_OUT_SIZE, _OUT_INT, _OUT_POINTER = POINTER(c_size_t), POINTER(c_int), POINTER(c_void_p)
_PROTOTYPES: dict[str, list[Any]] = {
    "cudaMalloc": [_OUT_POINTER, c_size_t],
    "cudaFree": [c_void_p],
    "cudaMemcpyAsync": [c_void_p, c_void_p, c_size_t, c_int, c_void_p],
    "cudaMemcpy2DAsync": [c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int, c_void_p],
    "cudaMemsetAsync": [c_void_p, c_int, c_size_t, c_void_p],
    "cudaStreamCreate": [_OUT_POINTER],
    "cudaStreamSynchronize": [c_void_p],
    "cudaMemGetInfo": [_OUT_SIZE, _OUT_SIZE],
    "cudaDriverGetVersion": [_OUT_INT],
    "cudaDeviceGetAttribute": [_OUT_INT, c_int, c_int],
}


class Cuda:
    """The first GPU, and one stream on it."""

    def __init__(self) -> None:
        """Raises `MvlmError` when there is no CUDA runtime here, or no GPU."""
        self._library = _open(_LIBRARIES)
        for name, types in _PROTOTYPES.items():
            getattr(self._library, name).argtypes = types
        self._library.cudaGetErrorString.argtypes = [c_int]
        self._library.cudaGetErrorString.restype = c_char_p
        stream = c_void_p()
        self._call("cudaStreamCreate", byref(stream))
        self.stream = stream.value or 0

    @property
    def capability(self) -> str:
        """As NVIDIA writes it in short: sm87."""
        return f"sm{self._attribute(_MAJOR)}{self._attribute(_MINOR)}"

    @property
    def driver(self) -> str:
        """The newest CUDA that the driver knows: 12.6."""
        version = c_int()
        self._call("cudaDriverGetVersion", byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    @property
    def name(self) -> str:
        """What the driver calls the GPU."""
        name = ctypes.create_string_buffer(256)
        status = _open((_DRIVER,)).cuDeviceGetName(name, c_int(len(name)), c_int(0))
        if status:
            raise MvlmError(f"the CUDA driver does not name its GPU (error {status}): check the driver", code="no-cuda")
        return name.value.decode()

    def free_bytes(self) -> tuple[int, int]:
        """Memory of the device that is free, and all of it."""
        free, total = c_size_t(), c_size_t()
        self._call("cudaMemGetInfo", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> Buffer:
        address = c_void_p()
        self._call("cudaMalloc", byref(address), max(size, 1))  # an empty tensor needs an address too
        return Buffer(self, address.value or 0, size)

    def free(self, address: int) -> None:
        self._library.cudaFree(address)

    def send(self, array: NDArray[Any], to: int) -> None:
        """Copy a contiguous array of the host; it must live until the stream has come so far."""
        self._call("cudaMemcpyAsync", to, array.ctypes.data, array.nbytes, _TO_DEVICE, self.stream)

    def fetch(self, array: NDArray[Any], source: int) -> None:
        """Fill a contiguous array of the host, and wait for it."""
        self._call("cudaMemcpyAsync", array.ctypes.data, source, array.nbytes, _TO_HOST, self.stream)
        self.wait()

    def copy_rows(self, to: int, to_pitch: int, source: int, pitch: int, width: int, rows: int) -> None:
        """Copy the first `width` bytes of each of `rows` rows, which begin `pitch` bytes apart."""
        if width:
            self._call("cudaMemcpy2DAsync", to, to_pitch, source, pitch, width, rows, _ON_DEVICE, self.stream)

    def clear(self, buffer: Buffer) -> None:
        self._call("cudaMemsetAsync", buffer.address, 0, buffer.size, self.stream)

    def wait(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def _attribute(self, which: int) -> int:
        value = c_int()
        self._call("cudaDeviceGetAttribute", byref(value), which, 0)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            reason = self._library.cudaGetErrorString(status)
            text = reason.decode() if reason else f"error {status}"
            raise MvlmError(f"CUDA says to {name}: {text}", code="cuda-error")


class Buffer:
    """Memory of the device, given back when nobody holds it any more."""

    def __init__(self, cuda: Cuda, address: int, size: int) -> None:
        self._cuda, self.address, self.size = cuda, address, size

    def __del__(self) -> None:
        self._cuda.free(self.address)


def _open(names: tuple[str, ...]) -> Any:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise MvlmError(f"there is no {names[-1]} here: TensorRT engines run where CUDA is installed", code="no-cuda")
