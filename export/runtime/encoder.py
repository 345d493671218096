"""The vision tower and the connectors of a bundle, open: from pixels to the visual tokens of each view.

Letters: n views, P patches of a view, m visual tokens of a view, D width of the language model.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.backends.onnx import run_session
from export.runtime.backends.select import Files

from .errors import MvlmError
from .manifest import Manifest

Array = NDArray[np.float32]
# Connectors beyond these are opened when they are first asked for: a `query` bundle may hold hundreds of scales.
_OPEN_FROM_THE_START = 8


class Encoder:
    """Safe to use from several threads."""

    def __init__(self, manifest: Manifest, files: Files) -> None:
        self._manifest, self._files = manifest, files
        self.vision = files.session(manifest.vision.file)
        self._connectors: dict[int, Any] = {}
        self._opening = threading.Lock()
        for m in list(manifest.connectors)[:_OPEN_FROM_THE_START]:
            self._connector(m)
        self.newline = _newline(manifest)

    @property
    def views_at_once(self) -> int:
        """How many views one run takes."""
        return self._files.views_at_once

    def look(self, pixels: Array) -> tuple[Array, Array]:
        """Views (n, 3, height, width) -> values (n, P, ·) and words (n, P, D)."""
        values, words = self._batches(pixels, ["values", "words"])
        return values, words

    def values(self, pixels: Array) -> Array:
        """Views (n, 3, height, width) -> values (n, P, ·)."""
        return self._batches(pixels, ["values"])[0]

    def _batches(self, pixels: Array, roles: list[str]) -> list[Array]:
        """As many views at once as the engine takes."""
        most = self.views_at_once
        parts = [self._run(pixels[at : at + most], roles) for at in range(0, len(pixels), most)]
        return parts[0] if len(parts) == 1 else [np.concatenate(each) for each in zip(*parts, strict=True)]

    def tokens(self, values: Array, num_visual_tokens: int) -> Array:
        """Values of views (n, P, ·) -> their tokens (n, m, D)."""
        graph, session = self._manifest.connectors[num_visual_tokens], self._connector(num_visual_tokens)
        most, found = self.views_at_once, []
        for at in range(0, len(values), most):
            part = values[at : at + most]
            tokens = run_session(session, [graph.outputs["tokens"]], {graph.inputs["values"]: part})[0]
            wanted = (len(part), num_visual_tokens, self._manifest.embedding.shape[1])
            if tokens.shape != wanted:
                raise MvlmError(
                    f"{graph.file} gives {tokens.shape} and not {wanted}: it is another scale's; export again",
                    code="bad-bundle",
                )
            found.append(tokens)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _run(self, pixels: Array, roles: list[str]) -> list[Array]:
        graph = self._manifest.vision
        return run_session(self.vision, [graph.outputs[role] for role in roles], {graph.inputs["pixel_values"]: pixels})

    def _connector(self, num_visual_tokens: int) -> Any:
        """The open connector of a scale; where a bundle holds many, those that nobody asks for are never opened."""
        with self._opening:
            if num_visual_tokens not in self._connectors:
                graph = self._manifest.connectors[num_visual_tokens]
                self._connectors[num_visual_tokens] = self._files.session(graph.file, small=True)
            return self._connectors[num_visual_tokens]


def _newline(manifest: Manifest) -> Array | None:
    """The vector (D,) that ends each row of a grid of tiles, where the model has one."""
    place = manifest.newline
    if place is None:
        return None
    return np.fromfile(manifest.path(place.file), np.float32, place.shape[1], offset=place.offset)
