"""A bundle's graphs on the provider that was asked for: by onnxruntime as they are, or as the engines built of them."""

from __future__ import annotations

from typing import Any, Protocol

from export.runtime.manifest import Manifest

from .onnx import TENSORRT, Decoder, Device, open_session

# What a layer of the tower leaves of so many views is held at once; more at a time are no faster.
_VIEWS_AT_ONCE = 32


class Files(Protocol):
    """What a runtime opens of a bundle. `for_small`: where the router's graph runs; None lets numpy walk it.

    `views_at_once` is how many views vision tower and connectors take in one run.
    """

    for_small: Device | None
    views_at_once: int

    def session(self, file: str, *, small: bool = False) -> Any: ...

    def decoder(self) -> Any:
        """With the methods of sessions.Decoder, its caches with those of sessions.Cache."""


class OnnxFiles:
    """By onnxruntime."""

    def __init__(self, manifest: Manifest, device: Device) -> None:
        self._manifest, self._device = manifest, device
        # The small graphs gain nothing from more threads, and idle ones would only get in the way.
        self.for_small: Device | None = Device(device.provider, threads=1)
        self.views_at_once = _VIEWS_AT_ONCE

    def session(self, file: str, *, small: bool = False) -> Any:
        device = self.for_small if small and self.for_small else self._device
        return open_session(self._manifest.path(file), device)

    def decoder(self) -> Decoder:
        facts = self._manifest.decoder
        return Decoder(self._manifest.path(facts.graph.file), facts, self._device)


def open_files(manifest: Manifest, device: Device) -> Files:
    """Raises `MvlmError` when the provider is not here, or a file cannot be opened on it."""
    if device.provider in TENSORRT:
        from .tensorrt_session import Engines

        return Engines(manifest, device.provider)
    return OnnxFiles(manifest, device)
