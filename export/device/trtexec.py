"""The build as commands for NVIDIA's own tool, for who wants to try one engine by hand.

Flags by version: sampleOptions.cpp of the tags v8.6.1, v10.3.0 to v10.16 and v11.0 of NVIDIA/TensorRT. Version 8.6
knows one profile a command, so it gets one command for each; from 11 on types are always obeyed, and no flag says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from .profiles import Bounds

# An input's sizes, with names for those that a profile sets.
Shape = Sequence[int | str]


def commands(
    graph: Path,
    inputs: Mapping[str, Shape],
    profiles: Sequence[Mapping[str, Bounds]],
    to: Path,
    timings: Path,
    tool: str,
    version: tuple[int, int],
    types: Sequence[str],
) -> list[str]:
    """One command, or with TensorRT 8.6 one for each profile; `types` beside float32 are called as trtexec does."""
    dynamic = {name: shape for name, shape in inputs.items() if any(isinstance(size, str) for size in shape)}
    common = [tool, f"--onnx={graph}", f"--timingCacheFile={timings}", "--skipInference"]
    if version < (10, 0):
        common += [f"--{name}" for name in types]
        return [
            shlex.join([*common, f"--saveEngine={_numbered(to, i, len(profiles))}", *_ranges(dynamic, sizes)])
            for i, sizes in enumerate(profiles)
        ]
    common += ["--stronglyTyped"] if version < (11, 0) else []
    command = [*common, f"--saveEngine={to}"]
    for i, sizes in enumerate(profiles):
        command += ([f"--profile={i}"] if len(profiles) > 1 else []) + _ranges(dynamic, sizes)
    return [shlex.join(command)]


def _ranges(dynamic: Mapping[str, Shape], sizes: Mapping[str, Bounds]) -> list[str]:
    """--minShapes, --optShapes and --maxShapes."""
    if not dynamic:
        return []
    found = []
    for i, word in enumerate(("min", "opt", "max")):
        shapes = (
            f"{name}:{'x'.join(str(size if isinstance(size, int) else sizes[size][i]) for size in shape)}"
            for name, shape in dynamic.items()
        )
        found.append(f"--{word}Shapes={','.join(shapes)}")
    return found


def _numbered(path: Path, index: int, count: int) -> Path:
    return path if count == 1 else path.with_name(f"{path.stem}.{index}{path.suffix}")
