"""How a bundle shows pictures, against the model's own processor: pixels bit for bit, ids one for one.

Real rows may all be of one shape; so each is cut to others too, that were never traced and that nobody has drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from export.runtime import Runtime, View
from export.runtime.clips import ClipSource
from export.runtime.views.scale import Scale, ScaleWord
from mvlm_core.data.row import Row
from mvlm_core.label.shown_pictures import ShownPictures

from .source import Source

# Shares of a picture's width and height.
_SHAPES = {"wide": (1.0, 0.25), "tall": (0.2, 1.0), "small": (0.1, 0.1)}


@dataclass
class PictureCheck:
    """What was compared of pictures and prompts."""

    source: Source
    seen: int = 0
    views: set[int] = field(default_factory=set)
    other: list[str] = field(default_factory=list)

    def see(self, runtime: Runtime, row: Row, shown: ShownPictures) -> None:
        """A row's picture as it is, and where it is cut into tiles in other shapes too."""
        opened = shown.pictures.opened[0]
        if not isinstance(opened, Image.Image):
            self._compare_clip(runtime, opened, f"row {row.id}")
            return
        self._compare(runtime, opened, f"row {row.id}")
        if self.source.views is None:
            return
        for name, (across, down) in _SHAPES.items():
            width, height = max(1, round(across * opened.width)), max(1, round(down * opened.height))
            if max(width, height) <= 64 * min(width, height):  # beyond, no picture is read
                self._compare(runtime, opened.crop((0, 0, width, height)), f"row {row.id}, {name}")

    def see_prompt(self, runtime: Runtime, view: View, row: Row, scale: ScaleWord, wanted: list[int]) -> None:
        """The ids of a whole prompt, placeholders among them."""
        prompt = runtime.prompt
        found = [*prompt.before(row.question), *view.at(scale).laid.ids, *prompt.after(row.question)]
        if found != wanted:
            self.other.append(f"row {row.id}: the prompt at scale {scale} has other ids")

    def values(self, shown: ShownPictures, scale: ScaleWord) -> Tensor:
        """What torch's connector reads of the views of a scale: (n, P, ·)."""
        return shown.values[shown.places(0, scale)]

    def faults(self) -> list[str]:
        if not self.other:
            return []
        return [f"{len(self.other)} pictures are shown otherwise ({self.other[0]})"]

    def facts(self) -> dict[str, Any]:
        """What goes into verify.json."""
        return {"compared": self.seen, "views": sorted(self.views), "other": len(self.other)}

    def _compare_clip(self, runtime: Runtime, clip: Any, name: str) -> None:
        images, source = self.source.processor.image_processor, ClipSource(clip, (), runtime.manifest)
        self.seen += 1
        for scale in self.source.scales:
            wanted, laid = (
                images.shown_of(clip, Scale.parse(scale)),
                runtime.layout.clip(source.count, scale, clip.timing),
            )
            self.views.add(laid.views)
            if list(laid.ids) != self.source.processor.picture_ids(wanted):
                self.other.append(f"{name}: other ids at scale {scale}")
            elif not np.array_equal(images.pixels(clip, wanted.views), source.pixels(laid.shown.views)):
                self.other.append(f"{name}: other pixels at scale {scale}")

    def _compare(self, runtime: Runtime, opened: Image.Image, name: str) -> None:
        images, source = self.source.processor.image_processor, runtime.source(opened)
        overview = torch.from_numpy(images.pixels(opened, images.shown_of(opened, Scale(1)).views))
        self.seen += 1
        if not np.array_equal(overview[0].numpy(), source.overview()):
            self.other.append(f"{name}: other pixels of the overview")
        for scale in self.source.scales if self.source.views else ():
            wanted, laid = images.shown_of(opened, Scale.parse(scale)), runtime.layout.at(source.size, scale)
            self.views.add(laid.views)
            if list(laid.ids) != self.source.processor.picture_ids(wanted):
                self.other.append(f"{name}: other ids at scale {scale}")
            elif not np.array_equal(images.pixels(opened, wanted.views), source.pixels(laid.shown.views)):
                self.other.append(f"{name}: other pixels at scale {scale}")
