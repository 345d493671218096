"""What an app on a device embeds: `from export.runtime import Runtime`. Knows no torch, and nothing of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import CheckFailed, MvlmError

if TYPE_CHECKING:
    from export.runtime.routing.router import Choice

    from .answer import Answer, Stream
    from .engine import Runtime
    from .view import View

__all__ = ["Answer", "CheckFailed", "Choice", "MvlmError", "Runtime", "Stream", "View"]
_HOME = {"Answer": "answer", "Choice": "routing.router", "Runtime": "engine", "Stream": "answer", "View": "view"}


def __getattr__(name: str) -> Any:
    # The training side imports features and errors from here too, and needs no engine for that.
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
