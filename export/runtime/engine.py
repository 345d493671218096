"""`Runtime`: load a bundle, look at a picture once, ask about it at any scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from export.runtime.backends.onnx import Device
from export.runtime.decode.batch import answer_many
from export.runtime.routing.costs import read_costs

from .answer import Answer, Clock
from .answerer import Answerer
from .errors import MvlmError
from .image import Order, Picture
from .machine import device_name
from .manifest import read_manifest, read_verification, require_provider
from .request import Options, Scale, request_of
from .view import View, look

Array = NDArray[np.float32]
# Connectors beyond these are opened when they are first asked for: a `query` bundle may hold hundreds of scales.
_OPEN_FROM_THE_START = 8


class Runtime(Answerer):
    """The door: a bundle that looks at pictures, and answers."""

    @classmethod
    def load(cls, path: str | Path, provider: str = "cpu", threads: int | None = None) -> Runtime:
        """Open the bundle at `path` on `provider`. Raises `MvlmError` when it is not whole or cannot be opened."""
        if not isinstance(path, str | Path):
            raise MvlmError(f"{path!r} is no path of a bundle: name its folder")
        device = Device(provider, threads)
        manifest = read_manifest(Path(path))
        require_provider(manifest, provider)
        return cls(manifest, device, read_costs(manifest.folder, device_name(provider, threads), manifest.sha256))

    def verified(self, num_visual_tokens: int) -> str:
        """In a person's words: in which precision a scale was held against torch, and what it lost."""
        report = read_verification(self.manifest)
        if report is None:
            return "not verified"
        facts = report["scales"][str(num_visual_tokens)]
        lost = facts["points_lost"]
        precision = ", ".join(f"{part} {name}" for part, name in self.manifest.precision.items())
        return (
            f"verified against torch ({precision}): {facts['same_answers']} of {facts['answers']} answers the same,"
            f" {lost['points']:.1f} points lost [{lost['low']:.1f}, {lost['high']:.1f}]"
        )

    def look(self, picture: Picture, order: Order = "rgb") -> View:
        """Encode a picture once: a path, encoded bytes, a PIL picture, or an array (H, W, 3) uint8.

        `order` is that of an array's channels; OpenCV's frames are `bgr`.
        """
        return look(self, picture, order)

    def ask(self, picture: Picture, question: str, scale: Scale = "auto", **options: Unpack[Options]) -> Answer:
        """Look at a picture and ask one question about it; see `View.ask`. The deadline counts the look."""
        clock = Clock(deadline_ms=options.get("deadline_ms"))
        request = request_of(question, scale, options)
        self.require_answerable(request)
        return self.stream(self.look(picture), request, clock).read()

    def ask_many(
        self, pictures: Sequence[Picture | View], question: str, scale: Scale = "auto", **options: Unpack[Options]
    ) -> list[Answer]:
        """One question about several pictures, or views of them, in their order: as one by one.

        `decode.batch.answer_many` says when they are written at once.
        """
        request = request_of(question, scale, options)
        self.require_answerable(request)
        views = (picture if isinstance(picture, View) else self.look(picture) for picture in pictures)
        return answer_many(self, views, [request] * len(pictures))
