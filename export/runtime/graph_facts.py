"""What an ONNX file asks for, read from its bytes before an engine opens it: operators, and files of data beside it.

Source: the message layout is onnx.proto of ONNX 1.17.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import MvlmError
from .routing.numpy_onnx import fields_of

# By message, the fields that hold further messages.
_MODEL = {7: "graph", 25: "function"}
_HOLDS: dict[str, dict[int, str]] = {
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_OPERATOR, _DOMAIN, _EXTERNAL = 4, 7, 13
_DEEPEST = 20


def operators(path: Path) -> set[str]:
    """The operators of a graph, those inside others among them; one of another domain than ONNX's with its domain."""
    found = set()
    for kind, message in _messages(path):
        if kind == "node":
            domain = "".join(bytes(part).decode() for part in message[_DOMAIN][:1])
            name = bytes(message[_OPERATOR][0]).decode()
            found.add(name if domain in ("", "ai.onnx", "ai.onnx.ml") else f"{domain}.{name}")
    return found


def data_files(path: Path) -> set[str]:
    """The files that a graph's tensors lie in, as it names them."""
    found = set()
    for kind, message in _messages(path):
        if kind == "tensor":
            entries = (fields_of(entry) for entry in message[_EXTERNAL])
            pairs = {bytes(entry[1][0]): bytes(entry[2][0]).decode() for entry in entries}
            found |= {pairs[b"location"]} if b"location" in pairs else set()
    return found


def _messages(path: Path) -> Iterator[tuple[str, Any]]:
    """Every message of a model that may hold an operator or a tensor. Raises `MvlmError` when it is no model."""
    try:
        model = fields_of(memoryview(path.read_bytes()))
        yield from _below(model, _MODEL, 0)
    except (IndexError, KeyError, ValueError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise MvlmError(f"{path} cannot be opened ({reason}): export again", code="bad-bundle") from None


def _below(message: Any, holds: dict[int, str], depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    for number, kind in holds.items():
        for part in message[number]:
            inner = fields_of(part)
            yield kind, inner
            yield from _below(inner, _HOLDS[kind], depth + 1)
