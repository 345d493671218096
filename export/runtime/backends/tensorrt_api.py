"""What differs between versions of TensorRT, and between TensorRT and TensorRT for RTX; nobody else asks for a version.

    8.6 (JetPack 6.0)             no strong typing: precisions are allowed by flags, and integers of 64 bits become 32
    10.3 to 10.16 (JetPack 6, 7)  strongly typed networks by a flag; the batch flag is of no use any more
    11, and RTX 1.7               nothing else than strong typing; no flags of precision left

What the bindings of each version offer was read from those bindings (tests/support/tensorrt_api.json). Numbers behind
enums change between versions and are never written down here.
"""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime.errors import MvlmError

# By provider: modules by which the package may be imported, and where it comes from.
PRODUCTS = {
    "tensorrt": (("tensorrt",), 'JetPack brings it; elsewhere: pip install "mvlm[tensorrt]"'),
    "tensorrt-rtx": (("tensorrt_rtx", "tensorrt_rtx_bindings"), 'pip install "mvlm[rtx]"'),
}
_MOST_ERRORS, _LONGEST = 3, 200


class Tensorrt:
    """An installed TensorRT: what building and running engines needs, the same for every version."""

    def __init__(self, product: str) -> None:
        """Raises `MvlmError` when the package is not installed, or is too old."""
        self.product = product
        self.trt = _import(product)
        self.version = str(self.trt.__version__)
        if product == "tensorrt" and self.number < (8, 6):
            raise MvlmError(f"TensorRT {self.version} is installed, and 8.6 is the oldest that is known here: upgrade")
        self.logger = _logger(self.trt)

    @property
    def number(self) -> tuple[int, int]:
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def generation(self) -> tuple[int, int]:
        """The version whose ways this one has: TensorRT for RTX 1.7 is of the eleventh generation."""
        return self.number if self.product == "tensorrt" else (11, 0)

    @property
    def strongly_typed(self) -> bool:
        """Whether the types in a graph are obeyed."""
        return hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def keeps_timings(self) -> bool:
        """Whether a timing cache is of use: TensorRT for RTX chooses kernels where it runs, and measures none here."""
        return self.product == "tensorrt"

    def network(self, builder: Any) -> Any:
        """An empty network whose batch is explicit and whose types are those of the graph, where that can be said."""
        flags = self.trt.NetworkDefinitionCreationFlag
        name = "STRONGLY_TYPED" if self.strongly_typed else "EXPLICIT_BATCH"
        return builder.create_network(1 << int(getattr(flags, name)))

    def allow_precisions(self, config: Any, *, halves: bool, quantised: bool) -> None:
        """Where types are not obeyed, allow those that the graph asks for."""
        if self.strongly_typed:
            return
        if halves:
            config.set_flag(self.trt.BuilderFlag.FP16)
        if quantised:
            config.set_flag(self.trt.BuilderFlag.INT8)

    def for_capability(self, config: Any, capability: str) -> None:
        """Build for a GPU that is not here. Raises `MvlmError` when this package cannot."""
        known = getattr(self.trt, "ComputeCapability", None)
        name = capability.upper()
        if known is None:
            raise MvlmError(
                f"TensorRT {self.version} builds for the GPU that it stands beside only: build on the device, or export"
                " with --target rtx for an RTX machine"
            )
        if not name.startswith("SM") or not hasattr(known, name):
            offered = sorted((key for key in dir(known) if key.startswith("SM")), key=lambda key: int(key[2:]))
            raise MvlmError(
                f"TensorRT for RTX {self.version} does not build for {capability}: name one of"
                f" {', '.join(offered).lower()}"
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(known, name), 0)

    def activation_bytes(self, engine: Any) -> int:
        """Memory that a context of this engine takes besides the weights."""
        for name in ("device_memory_size_v2", "device_memory_size"):
            if hasattr(engine, name):
                return int(getattr(engine, name))
        raise MvlmError(f"TensorRT {self.version} does not say what memory an engine takes: upgrade mvlm")

    def dtype(self, engine: Any, tensor: str) -> Any:
        """What an engine's tensor holds, as numpy calls it."""
        return np.dtype(self.trt.nptype(engine.get_tensor_dtype(tensor)))

    def read_engine(self, path: Path) -> Any:
        """Raises `MvlmError` when the file is no engine for this TensorRT and this GPU."""
        engine = self.trt.Runtime(self.logger).deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise MvlmError(
                f"{path} is no engine for TensorRT {self.version} on this GPU ({self.said()}): run `mvlm build` here",
                code="bad-engine",
            )
        return engine

    def said(self) -> str:
        """The errors that TensorRT logged since it was last asked, in one line."""
        return self.logger.take()


def _import(product: str) -> Any:
    modules, hint = PRODUCTS[product]
    for name in modules:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:
            reason = str(error).split("\n")[0][:200]
            raise MvlmError(f"{name} is installed, and cannot be loaded ({reason})", code="no-tensorrt") from None
    raise MvlmError(f"{modules[0]} is not installed: {hint}", code="no-tensorrt")


def _logger(trt: Any) -> Any:
    """A logger that keeps the first errors, and shows nothing."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []
            self._lock = threading.Lock()

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                line = " ".join(message.split())[:_LONGEST]
                with self._lock:
                    if line not in self._errors and len(self._errors) < _MOST_ERRORS:
                        self._errors.append(line)

        def take(self) -> str:
            with self._lock:
                errors, self._errors = self._errors, []
            return "; ".join(errors) or "no reason given"

    return Logger()
