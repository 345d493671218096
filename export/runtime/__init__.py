"""What an app on a device embeds: `from export.runtime import Runtime`. Knows no torch, and nothing of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import CheckFailed, MvlmError

if TYPE_CHECKING:
    from .engine import Answer, Runtime

__all__ = ["Answer", "CheckFailed", "MvlmError", "Runtime"]


def __getattr__(name: str) -> Any:
    # The training side imports features and errors from here too, and needs no engine for that.
    if name in {"Answer", "Runtime"}:
        from . import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
