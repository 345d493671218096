"""bundle/ -> engines, by the TensorRT that stands on this device, or ahead of time for an RTX machine.

Nothing here needs torch or onnx: a board has neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from export.runtime.artefact import output_folder, write_json
from export.runtime.backends.cuda import Cuda
from export.runtime.backends.engine_files import Fingerprint, Profile, engines_folder, read_engines, to_json
from export.runtime.backends.tensorrt_api import Tensorrt
from export.runtime.backends.tensorrt_session import here
from export.runtime.errors import MvlmError
from export.runtime.machine import resident_mib
from export.runtime.manifest import Graph, Manifest
from export.runtime.prompt import Prompt

from .profiles import VIEWS_AT_ONCE, Bounds, dimensions, of_views, profiles_of, prompt_lengths
from .trtexec import commands

OWN, SHARED, AUTO = "own", "shared", "auto"
# What a second copy of the weights must cost before decoding goes without kernels of its own.
_WORTH = 0.1
# By target: the product that builds it, and the oldest version that can.
BUILT_BY = {
    "jetpack-6.2": ("tensorrt", (10, 3)),
    "jetpack-7.2": ("tensorrt", (10, 16)),
    "rtx": ("tensorrt-rtx", (1, 7)),
}


@dataclass(frozen=True)
class Order:
    """How engines are asked for.

    Attributes:
        question_tokens: the longest question that will be asked.
        layout: whether decoding has a range of its own, shares one as long as a prompt's, or what takes less memory.
        workspace_mib: the most scratch memory that the builder may take; None leaves it to TensorRT.
    """

    question_tokens: int
    layout: str
    workspace_mib: int | None = None


@dataclass(frozen=True)
class Built:
    """One engine: what it takes on disk and beside its weights (None: no GPU here to ask), and how long it took."""

    path: Path
    engine_bytes: int
    activation_bytes: int | None
    seconds: float

    @property
    def memory_bytes(self) -> int:
        return self.engine_bytes + (self.activation_bytes or 0)


def _beside(api: Tensorrt, manifest: Manifest) -> Fingerprint:
    """The GPU of this machine. Raises `MvlmError` when it cannot be used, and says what else can be done."""
    try:
        return here(api, Cuda(), manifest.sha256)
    except MvlmError as error:
        ahead = ", or name the kind to build for, as in --gpu sm89" if api.product == "tensorrt-rtx" else ""
        raise MvlmError(f"no GPU can be used here ({error}): build on the device{ahead}", code=error.code) from None


class Builder:
    """Builds the engines of one bundle."""

    def __init__(
        self, api: Tensorrt, manifest: Manifest, prompt: Prompt, order: Order, fingerprint: Fingerprint
    ) -> None:
        self.api, self.manifest, self.prompt, self.order = api, manifest, prompt, order
        self.fingerprint, self.ahead = fingerprint, not fingerprint.gpu
        # Types beside float32; a TensorRT that does not obey the graph must be told.
        asked = set(manifest.precision.values())
        self.halves, self.quantised = "float32" not in asked or len(asked) > 1, bool(asked & {"int8", "int4"})
        # Outside of the folder that is replaced, so that a second build begins where the first one ended.
        folder = engines_folder(manifest.folder, fingerprint)
        self.timings = folder.with_name(f"{folder.name}.timing")

    @classmethod
    def of(cls, manifest: Manifest, prompt: Prompt, order: Order, gpu: str | None) -> Builder:
        """With the TensorRT that builds this bundle: for the GPU beside it, or ahead of time for one of the kind `gpu`.

        Raises `MvlmError`: a bundle that needs no engines or was exported for another device, no TensorRT, no GPU.
        """
        product = product_of(manifest)
        if gpu is not None and product != "tensorrt-rtx":
            raise MvlmError(
                f"{manifest.folder} was exported for {manifest.target}, whose engines are built on the device: leave"
                " --gpu out there, or export with --target rtx"
            )
        api = Tensorrt(product)
        require_version(manifest, api)
        if gpu is None:
            found = _beside(api, manifest)
        else:
            found = Fingerprint(api.product, api.version, gpu.lower(), "", "", manifest.sha256, {})
        return cls(api, manifest, prompt, order, replace(found, options=asdict(order)))

    def count(self) -> int:
        """How many engines are built."""
        return len(self.graphs()) + len(self.layouts())

    def graphs(self) -> list[Graph]:
        """Vision and connectors: one view at a time, and where there are tiles, many too."""
        return [self.manifest.vision, *self.manifest.connectors.values()]

    @property
    def views_at_once(self) -> int:
        return VIEWS_AT_ONCE if self.manifest.views else 1

    def layouts(self) -> list[str]:
        """What to try for the decoder. Weights of integers are kept once whatever the ranges; floats may not be."""
        if self.order.layout != AUTO:
            return [self.order.layout]
        return [OWN] if self.quantised else [OWN, SHARED]

    def profiles(self, layout: str) -> tuple[Profile, ...]:
        lengths = prompt_lengths(self.manifest, self.prompt, self.order.question_tokens)
        return profiles_of(lengths, own_decode=layout == OWN)

    def build(self, progress: Callable[[int], None]) -> dict[str, Any]:
        """Write engines/<device>/, whole or not at all, and return what its engines.json says.

        Raises `MvlmError` with TensorRT's own reason when a graph cannot be read or built.
        """
        folder = engines_folder(self.manifest.folder, self.fingerprint)
        with output_folder(folder, overwrite=True) as staging:
            built = {}
            for graph in self.graphs():
                to = staging / f"{Path(graph.file).stem}.engine"
                built[graph.file] = self.engine(graph.file, of_views(self.views_at_once), to)
                progress(1)
            layout, tried = self._decoder(staging, progress)
            decoder = self.manifest.decoder.graph.file
            built[decoder] = tried[layout]
            facts = to_json(
                self.fingerprint, {graph: one.path for graph, one in built.items()}, self.profiles(layout),
                layout=layout, views_at_once=self.views_at_once,
                layouts_tried={name: _memory(one) for name, one in tried.items()},
                engines={graph: _memory(one) | {"build_s": round(one.seconds, 2)} for graph, one in built.items()},
                peak_memory_mib=resident_mib("VmHWM"),
            )  # fmt: skip
            write_json(staging / "engines.json", facts)
        return facts

    def _decoder(self, folder: Path, progress: Callable[[int], None]) -> tuple[str, dict[str, Built]]:
        """Build every layout and keep one: decoding's own range, unless that costs much memory."""
        tried = {}
        for layout in self.layouts():
            by_profile = [dimensions(at, self.manifest.max_length) for at in self.profiles(layout)]
            path = folder / f"{Path(self.manifest.decoder.graph.file).stem}.{layout}.engine"
            tried[layout] = self.engine(self.manifest.decoder.graph.file, by_profile, path)
            progress(1)
        first, *others = tried
        least = min(tried, key=lambda layout: tried[layout].memory_bytes)
        saved = 1 - tried[least].memory_bytes / tried[first].memory_bytes
        kept = least if saved > _WORTH else first
        for layout in {first, *others} - {kept}:
            tried[layout].path.unlink()
        return kept, tried

    def engine(self, file: str, profiles: Sequence[Mapping[str, Bounds]], to: Path) -> Built:
        """Build the engine of one graph, with a profile for each set of sizes of its named dimensions."""
        api, trt = self.api, self.api.trt
        started = time.perf_counter()
        builder = trt.Builder(api.logger)
        network, _parser = self._read(builder, file)
        config = builder.create_builder_config()
        api.allow_precisions(config, halves=self.halves, quantised=self.quantised)
        if self.order.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.order.workspace_mib * 2**20)
        if self.ahead:
            api.for_capability(config, self.fingerprint.capability)
        inputs = _inputs(network)
        for sizes in profiles:
            self._add_profile(builder, config, inputs, sizes)
        if api.keeps_timings:
            self._read_timings(config)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise MvlmError(f"TensorRT {api.version} cannot build {file} ({api.said()})")
        with to.open("wb") as stream:
            stream.write(plan)
        if api.keeps_timings:
            self._keep_timings(config)
        size = int(plan.nbytes)
        del plan
        return Built(to, size, self._activation_bytes(to), time.perf_counter() - started)

    def commands(self) -> list[str]:
        """The same build for trtexec: one command for each engine."""
        folder = engines_folder(self.manifest.folder, self.fingerprint)
        wanted = [(graph.file, of_views(self.views_at_once)) for graph in self.graphs()]
        layout = self.layouts()[0]
        by_profile = [dimensions(at, self.manifest.max_length) for at in self.profiles(layout)]
        tool = "tensorrt_rtx" if self.api.product == "tensorrt-rtx" else "trtexec"
        types = [name for name, there in (("fp16", self.halves), ("int8", self.quantised)) if there]
        lines = []
        for file, profiles in [*wanted, (self.manifest.decoder.graph.file, by_profile)]:
            builder = self.api.trt.Builder(self.api.logger)
            network, _parser = self._read(builder, file)
            named = {tensor.name: _named_shape(tensor) for tensor in _inputs(network)}
            to = folder / f"{Path(file).stem}.engine"
            lines += commands(
                self.manifest.path(file), named, profiles, to, self.timings, tool, self.api.generation, types
            )
        return lines

    def _read(self, builder: Any, file: str) -> tuple[Any, Any]:
        """A graph as a network, and the parser, which must live as long as the network does."""
        network = self.api.network(builder)
        parser = self.api.trt.OnnxParser(network, self.api.logger)
        if not parser.parse_from_file(str(self.manifest.path(file))):
            reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise MvlmError(
                f"TensorRT {self.api.version} cannot read {file} ({_line(reasons)}): export for this device"
            )
        return network, parser

    def _add_profile(self, builder: Any, config: Any, inputs: Sequence[Any], sizes: Mapping[str, Bounds]) -> None:
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            if -1 in tuple(tensor.shape):
                profile.set_shape(tensor.name, *shapes(tensor, sizes))
        if config.add_optimization_profile(profile) < 0:
            raise MvlmError(f"TensorRT {self.api.version} does not take the ranges of a profile ({self.api.said()})")

    def _read_timings(self, config: Any) -> None:
        """Begin with what earlier builds measured; TensorRT itself refuses what is of another GPU or version."""
        kept = self.timings.read_bytes() if self.timings.is_file() else b""
        cache = config.create_timing_cache(kept)
        if not config.set_timing_cache(cache, False) and kept:
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def _keep_timings(self, config: Any) -> None:
        beside = self.timings.with_name(self.timings.name + ".partial")
        beside.write_bytes(bytes(config.get_timing_cache().serialize()))
        beside.replace(self.timings)

    def _activation_bytes(self, path: Path) -> int | None:
        return None if self.ahead else self.api.activation_bytes(self.api.read_engine(path))


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(i) for i in range(network.num_inputs)]


def _named_shape(tensor: Any) -> list[int | str]:
    return [size if size != -1 else tensor.get_dimension_name(axis) for axis, size in enumerate(tuple(tensor.shape))]


def shapes(tensor: Any, sizes: Mapping[str, Bounds]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """An input's shape at the least, likely and largest sizes of its named dimensions."""
    shape = _named_shape(tensor)
    unknown = sorted({size for size in shape if isinstance(size, str) and size not in sizes})
    if unknown:
        raise MvlmError(f"the input {tensor.name} has a dimension {', '.join(unknown)} that no profile gives sizes for")
    found = [tuple(sizes[size][i] if isinstance(size, str) else size for size in shape) for i in range(3)]
    return found[0], found[1], found[2]


def up_to_date(manifest: Manifest, fingerprint: Fingerprint) -> bool:
    """Whether whole engines of this very fingerprint lie in the bundle."""
    folder = engines_folder(manifest.folder, fingerprint)
    if not (folder / "engines.json").is_file():
        return False
    try:
        return read_engines(folder).fingerprint == fingerprint
    except MvlmError:  # not whole: to be built again
        return False


def _memory(one: Built) -> dict[str, float | None]:
    activation = None if one.activation_bytes is None else round(one.activation_bytes / 2**20, 2)
    return {"engine_mib": round(one.engine_bytes / 2**20, 2), "activation_mib": activation}


def _line(reasons: Sequence[str]) -> str:
    return " ".join("; ".join(dict.fromkeys(reasons)).split())[:300] or "no reason given"


def said_of(facts: Mapping[str, Any], folder: Path) -> str:
    """A line on what was built, and why the decoder is laid out as it is."""
    size = sum(one["engine_mib"] for one in facts["engines"].values())
    text = (
        f"{folder}: {len(facts['engines'])} engines, {size:.1f} MiB, {len(facts['profiles'])} profiles in the decoder"
    )
    tried = facts["layouts_tried"]
    if len(tried) < 2:
        return text
    sizes = {name: at["engine_mib"] + (at["activation_mib"] or 0) for name, at in tried.items()}
    own, shared = sizes[OWN], sizes[SHARED]
    kept = "has kernels of its own" if facts["layout"] == OWN else "shares the kernels' weights with prompts"
    return f"{text}; decoding {kept} ({own:.1f} MiB with a profile for itself alone, {shared:.1f} MiB shared)"


def product_of(manifest: Manifest) -> str:
    """Which TensorRT builds a bundle. Raises `MvlmError` for a bundle that none does."""
    if manifest.target not in BUILT_BY:
        raise MvlmError(
            f"{manifest.folder} was exported for {manifest.target}, which needs no engines: `mvlm run` takes it as it"
            f" is; for TensorRT export with --target, one of {', '.join(BUILT_BY)}"
        )
    return BUILT_BY[manifest.target][0]


def require_version(manifest: Manifest, api: Tensorrt) -> None:
    """Raise `MvlmError` when the TensorRT that is here is older than what the bundle was exported for."""
    least = BUILT_BY[manifest.target][1]
    if api.number < least:
        raise MvlmError(
            f"{manifest.folder} was exported for {manifest.target}, TensorRT {'.'.join(map(str, least))} or later, and"
            f" here is {api.version}: export for this device",
            code="other-device",
        )
