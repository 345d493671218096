"""Opens the graphs of a router, and reads what stands beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from export.runtime.backends.onnx import Device, open_session
from export.runtime.errors import MvlmError
from export.runtime.graph_facts import operators

from .known import fault_of
from .numpy_onnx import ROUTER_OPERATORS, GraphWalk

ROUTER_FORMAT = 4  # since 3 a router may read pictures, since 4 rows may have costs of their own
METADATA_KEY = "mvlm"


class Names(NamedTuple):
    """What the graph calls its p-value, and the threshold that it is held against; and the rank of its costs."""

    p_value: str
    least_p_value: str
    cost_rank: int = 1


# A graph of format 1 has other names for two of its ends, and its description for two of its keys.
NAMES = {1: Names("familiarity", "least_familiarity")} | {
    number: Names("p_value", "least_p_value", 2 if number >= 4 else 1) for number in range(2, ROUTER_FORMAT + 1)
}
_FORMER_KEYS = {"least_familiarity": "least_p_value", "promises": "risk_bounds"}


def open_graph(path: Path, device: Device | None) -> Any:
    """A graph of a router, on a device or in numpy."""
    _require_operators(path)
    return GraphWalk(path) if device is None else open_session(path, device)


def _require_operators(path: Path) -> None:
    """Raise `MvlmError` for a graph with more in it than a router needs: one with a loop might never end."""
    unknown = operators(path) - ROUTER_OPERATORS if path.is_file() else set()
    if unknown:
        raise MvlmError(
            f"{path} has operators that no router needs ({', '.join(sorted(unknown))}): fit and export again"
        )


def read_metadata(graph: Any, path: Path) -> dict[str, Any]:
    """What stands beside a graph. Raises `MvlmError` for what no fit says."""
    held = graph.metadata if isinstance(graph, GraphWalk) else graph.get_modelmeta().custom_metadata_map
    try:
        known = json.loads(held[METADATA_KEY])
        version = int(known["format_version"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise MvlmError(f"{path} does not say what it was fitted for: fit the router again and export") from None
    if version > ROUTER_FORMAT:
        raise MvlmError(f"{path} is of format {version}, and this mvlm reads up to {ROUTER_FORMAT}: upgrade mvlm")
    if version < min(NAMES):
        raise MvlmError(f"{path} is of format {version}, which there never was: fit the router again and export")
    if NAMES[version].p_value not in _outputs(graph):
        raise MvlmError(f"{path} is not of the format {version} that it says: fit the router again and export")
    known = {_FORMER_KEYS.get(key, key): value for key, value in known.items()}
    if fault := fault_of(known):
        raise MvlmError(f"{path} says of {fault} what no fit does: fit the router again and export")
    return known


def _outputs(graph: Any) -> list[str]:
    return graph.outputs if isinstance(graph, GraphWalk) else [output.name for output in graph.get_outputs()]


def read_priced(path: Path) -> list[tuple[float, float]]:
    """The table of prices and mean costs that a router ships with; none of one of before."""
    known = read_metadata(GraphWalk(path), path)
    return [(float(price), float(cost)) for price, cost in known.get("priced") or []]
