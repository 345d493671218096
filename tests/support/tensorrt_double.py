"""A TensorRT of any version, without TensorRT: it takes the calls that NVIDIA's bindings of it take, and no others.

Classes, members and signatures come from `data/tensorrt_api.json`, which was read from those bindings; a name or an
argument that a version has not fails here as it would there. Behind the signatures stands what the calls must add up
to: a network is an ONNX file, a plan is its path and profiles, and running one is onnxruntime on the addresses given.
`calls` records every call.
"""

from __future__ import annotations

import ctypes
import enum
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime

API = json.loads((Path(__file__).with_name("tensorrt_api.json")).read_text())
VERSIONS = list(API)
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
_ONNX = {1: "FLOAT", 10: "HALF", 6: "INT32", 7: "INT64", 9: "BOOL"}
_FREE = "(*args, **kwargs)"


def tensorrt_double(key: str, forbidden: frozenset[str] = frozenset()) -> ModuleType:
    """The module of a version, as `import tensorrt` would give it; its parser refuses the operators in `forbidden`."""
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = key.split()[-1]
    trt.calls = []
    trt.forbidden = forbidden
    trt.nptype = lambda kind: _NUMPY[kind.name]
    trt.old = key.startswith("8")
    for name, members in API[key].items():
        if name == "functions and constants":
            assert "nptype" in members
        elif (
            members
            and all(isinstance(value, int) for value in members.values() if value is not None)
            and (any(isinstance(value, int) for value in members.values()) and name != "Logger")
        ):
            numbers = {member: value for member, value in members.items() if isinstance(value, int)}
            setattr(trt, name, enum.IntEnum(name, numbers))
        else:
            setattr(trt, name, _class(trt, name, members))
    trt.ILogger = _ilogger()
    return trt


def _ilogger() -> type:
    class ILogger:
        Severity = enum.Enum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})

    return ILogger


def _class(trt: Any, name: str, members: dict[str, Any]) -> type:
    """A class that has these members and no others; what a member does stands in `_Behaviour_<name>`, if it is used."""
    behaviour = globals().get(f"_{name}", _Nothing)
    body: dict[str, Any] = {"_trt": trt}
    for member, signature in members.items():
        if isinstance(signature, str):
            body[member] = _checked(trt, name, member, signature, getattr(behaviour, member, None))

    def setattr_(self: Any, member: str, value: Any) -> None:
        if not member.startswith("_") and members.get(member, "") is not None:
            raise AttributeError(f"{name} has no attribute {member} to set")
        object.__setattr__(self, member, value)

    def getattr_(self: Any, member: str) -> Any:
        if not member.startswith("_") and members.get(member, "") is None and hasattr(behaviour, f"read_{member}"):
            return getattr(behaviour, f"read_{member}")(self)
        raise AttributeError(f"{name} has no attribute {member!r}")

    body["__setattr__"], body["__getattr__"] = setattr_, getattr_
    bases: tuple[type, ...] = (bytes,) if name == "IHostMemory" else ()
    if name != "IHostMemory":
        body["__init__"] = behaviour.__init__
    return type(name, bases, body)


def _checked(trt: Any, owner: str, member: str, signature: str, does: Any) -> Any:
    parameters = [] if signature == _FREE else _parameters(signature)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        trt.calls.append((owner, member, args, kwargs))
        if signature != _FREE:
            names = [name for name, _, _ in parameters]
            given = dict(zip(names, args, strict=False)) | kwargs
            unknown = [name for name in kwargs if name not in names]
            missing = [name for name, _, optional in parameters if not optional and name not in given]
            if len(args) > len(names) or unknown or missing:
                raise TypeError(f"{owner}.{member}{signature} was called with {args} {kwargs}")
            for name, kind, _ in parameters:
                if name in given and not _is(trt, given[name], kind):
                    raise TypeError(f"{owner}.{member}{signature} was given {given[name]!r} as {name}")
        assert does, f"the double does not know what {owner}.{member} does"
        return does(self, *args, **kwargs)

    return call


def _parameters(signature: str) -> list[tuple[str, str, bool]]:
    """Names, types, and whether they may be left out."""
    inside = signature[1 : signature.rindex(") ->")] if ") ->" in signature else signature[1:-1]
    found = re.findall(r"(\w+): ((?:[^,\[\]=]|\[[^\]]*\])+?)(\s*=\s*[^,]+)?(?:, |$)", inside)
    return [(name, kind.strip(), bool(default)) for name, kind, default in found]


def _is(trt: Any, value: Any, kind: str) -> bool:
    kind = kind.split("::")[-1].split(".")[-1]
    if kind in ("int", "SupportsInt"):
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    if kind in ("str", "bool"):
        return isinstance(value, {"str": str, "bool": bool}[kind])
    if kind == "Dims":
        return isinstance(value, tuple) and all(type(size) is int for size in value)
    if kind in ("buffer", "Buffer"):
        return isinstance(value, bytes | bytearray | memoryview)
    known = getattr(trt, kind, None)
    return isinstance(value, known) if isinstance(known, type) else True


class _Nothing:
    def __init__(self) -> None: ...


class _Builder:
    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, self._trt.ILogger)
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        trt = self._trt
        kinds = trt.NetworkDefinitionCreationFlag
        wanted = "EXPLICIT_BATCH" if trt.old else "STRONGLY_TYPED"
        assert flags == 1 << int(getattr(kinds, wanted)), f"flags {flags:b}"
        return trt.INetworkDefinition()

    def create_builder_config(self) -> Any:
        return self._trt.IBuilderConfig()

    def create_optimization_profile(self) -> Any:
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        trt = self._trt
        severity = trt.ILogger.Severity.ERROR
        halves = any(tensor.data_type == 10 for tensor in network._model.graph.initializer)
        if trt.old and halves and "FP16" not in config._flags:
            self._logger.log(severity, "half precision was not allowed")
            return None
        dynamic = [tensor.name for tensor in network._inputs if -1 in tensor.shape]
        if any(name not in profile for profile in config._profiles for name in dynamic):
            self._logger.log(severity, "a dynamic input has no range")
            return None
        plan = {
            "version": trt.__version__, "onnx": network._path, "profiles": config._profiles,
            "capability": getattr(config, "_capability", None),
        }  # fmt: skip
        return _memory(trt, json.dumps(plan).encode())


def _memory(trt: Any, data: bytes) -> Any:
    memory = trt.IHostMemory(data)
    object.__setattr__(memory, "nbytes", len(data))
    return memory


class _INetworkDefinition:
    def __init__(self) -> None:
        self._inputs: list[Any] = []

    read_num_inputs = staticmethod(lambda self: len(self._inputs))

    def get_input(self, index: int) -> Any:
        return self._inputs[index]


class _ITensor:
    def __init__(self, value: Any) -> None:
        self._names = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        object.__setattr__(self, "name", value.name)
        sizes = tuple(-1 if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim)
        object.__setattr__(self, "shape", sizes)

    def get_dimension_name(self, index: int) -> str:
        return self._names[index]


class _OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        assert isinstance(logger, self._trt.ILogger)
        assert isinstance(network, self._trt.INetworkDefinition)
        self._network, self._errors = network, []

    read_num_errors = staticmethod(lambda self: len(self._errors))

    def parse_from_file(self, path: str) -> bool:
        trt = self._trt
        model = onnx.load(path, load_external_data=False)
        for operator in sorted({node.op_type for node in model.graph.node} & trt.forbidden):
            self._errors.append(f"no importer for {operator}")
        self._network._path, self._network._model = path, model
        self._network._inputs += [trt.ITensor(value) for value in model.graph.input]
        return not self._errors

    def get_error(self, index: int) -> Any:
        error = self._trt.ParserError()
        error._text = self._errors[index]
        return error


class _ParserError(_Nothing):
    def desc(self) -> str:
        return self._text


class _IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        assert len(min) == len(opt) == len(max)
        assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)), f"{input}: {min} {opt} {max}"
        self._shapes[input] = [min, opt, max]


class _IBuilderConfig:
    def __init__(self) -> None:
        self._profiles: list[dict[str, Any]] = []
        self._flags: set[str] = set()
        self._cache: Any = None

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        assert pool.name == "WORKSPACE"

    def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
        cache = self._trt.ITimingCache()
        cache._data = bytes(serialized_timing_cache)
        return cache

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._data and cache._data != f"timings of {self._trt.__version__}".encode():
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        assert self.num_compute_capabilities == 1
        self._capability = compute_capability.name
        return True


class _ITimingCache(_Nothing):
    def serialize(self) -> Any:
        return _memory(self._trt, f"timings of {self._trt.__version__}".encode())


class _Runtime:
    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, self._trt.ILogger)
        self._logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        try:
            plan = json.loads(data)
        except ValueError:
            plan = {"version": "nothing"}
        if plan["version"] != self._trt.__version__:
            self._logger.log(self._trt.ILogger.Severity.ERROR, f"the plan is of {plan['version']}")
            return None
        engine = self._trt.ICudaEngine()
        engine._plan = plan
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        engine._session = onnxruntime.InferenceSession(plan["onnx"], options, providers=["CPUExecutionProvider"])
        model = onnx.load(plan["onnx"], load_external_data=False)
        initializers = {tensor.name for tensor in model.graph.initializer}
        engine._inputs = {v.name: v for v in model.graph.input if v.name not in initializers}
        engine._outputs = {v.name: v for v in model.graph.output}
        return engine


class _ICudaEngine(_Nothing):
    read_num_io_tensors = staticmethod(lambda self: len(self._inputs) + len(self._outputs))
    read_device_memory_size = staticmethod(lambda self: 1000)
    read_device_memory_size_v2 = staticmethod(lambda self: 1000)

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode.INPUT if name in self._inputs else self._trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        kind = _ONNX[(self._inputs | self._outputs)[name].type.tensor_type.elem_type]
        return self._trt.DataType["INT32" if kind == "INT64" and self._trt.old else kind]

    def create_execution_context(self) -> Any:
        context = self._trt.IExecutionContext()
        context._engine = self
        context._profile, context._shapes, context._addresses = 0, {}, {}
        return context


class _IExecutionContext(_Nothing):
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if profile_index >= len(self._engine._plan["profiles"]):
            return False
        self._profile, self._shapes = profile_index, {}  # shapes must be given anew
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        ranges = self._engine._plan["profiles"][self._profile].get(name)
        if ranges and not all(low <= size <= high for low, size, high in zip(ranges[0], shape, ranges[2], strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        engine = self._engine
        assert self._shapes.keys() == engine._inputs.keys(), (
            f"no shape for {engine._inputs.keys() - self._shapes.keys()}"
        )
        sizes: dict[str, int] = {}
        for given, value in ((self._shapes[key], value) for key, value in engine._inputs.items()):
            for size, dim in zip(given, value.type.tensor_type.shape.dim, strict=True):
                assert sizes.setdefault(dim.dim_param or f"={dim.dim_value}", size) == size, f"{dim} is {size}"
                assert dim.dim_param or dim.dim_value == size
        dims = (engine._inputs | engine._outputs)[name].type.tensor_type.shape.dim
        return tuple(sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in dims)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        feeds = {}
        for name, value in engine._inputs.items():
            held = np.dtype(_NUMPY[engine.get_tensor_dtype(name).name])
            array = _at(self._addresses[name], self._shapes[name], held)
            feeds[name] = array.astype(_NUMPY[_ONNX[value.type.tensor_type.elem_type]])
        for name, value in zip(engine._outputs, engine._session.run(None, feeds), strict=True):
            assert value.shape == self.get_tensor_shape(name)
            ctypes.memmove(self._addresses[name], np.ascontiguousarray(value).ctypes.data, value.nbytes)
        return True


def _at(address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(ctypes.string_at(address, size), dtype).reshape(shape)
