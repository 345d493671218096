"""The pictures of a step: each opened once, each view of it encoded once, whatever scales it is shown at.

Letters: B views, T placeholders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from export.runtime.views.cutting import OVERVIEW, View
from export.runtime.views.scale import Scale, ScaleWord
from export.runtime.views.shown import Shown
from mvlm_core.data.pictures import PictureSource
from mvlm_core.modeling.processing import MvlmProcessor, stitch_tensors

_BLACK = Image.new("RGB", (1, 1))


class StepPictures:
    """Pictures by their number, and what stands for them in a row at a scale."""

    def __init__(self, processor: MvlmProcessor, sources: Sequence[PictureSource]) -> None:
        self.processor = processor
        self.opened = [processor.image_processor.open(source.read()) for source in sources]
        self._shown: dict[tuple[int, ScaleWord], tuple[Shown, list[int]]] = {}

    def shown(self, picture: int, scale: ScaleWord) -> Shown:
        return self._at(picture, scale)[0]

    def ids(self, picture: int, scale: ScaleWord) -> list[int]:
        """The ids that stand for a picture, marks and placeholders."""
        return self._at(picture, scale)[1]

    def inputs(self, runs: Sequence[tuple[int, ScaleWord]]) -> dict[str, Any]:
        """What `forward` takes of the pictures, shown one after another as `runs` say.

        The overviews of all pictures come first among the views: words of patches are told for them alone.
        """
        shown = [(picture, self.shown(picture, scale)) for picture, scale in runs]
        views = self.views(runs)
        return {
            "pixel_values": self.pixels(views),  # (B, 3, H, W)
            "picture_of_run": [views[picture, view] for picture, one in shown for view in one.views],
            "num_visual_tokens": [one.tokens for _, one in shown for _ in one.views],
            **stitch_tensors([one for _, one in shown]),
        }

    def views(self, runs: Sequence[tuple[int, ScaleWord]]) -> dict[tuple[int, View], int]:
        """The place of each view that is encoded for these runs: first the overviews of all pictures."""
        views: dict[tuple[int, View], int] = {(picture, OVERVIEW): picture for picture in range(len(self.opened))}
        for picture, scale in runs:
            for view in self.shown(picture, scale).views:
                views.setdefault((picture, view), len(views))
        return views

    def _at(self, picture: int, scale: ScaleWord) -> tuple[Shown, list[int]]:
        if (picture, scale) not in self._shown:
            shown = self.processor.image_processor.shown_of(self.opened[picture], Scale.parse(scale))
            self._shown[picture, scale] = (shown, self.processor.picture_ids(shown))
        return self._shown[picture, scale]

    def pixels(self, views: dict[tuple[int, View], int]) -> torch.Tensor:
        """The pixels of views, in their places: (B, 3, H, W)."""
        read = self.processor.image_processor.pixels
        if not views:
            return torch.from_numpy(read(_BLACK, [OVERVIEW]))
        found: dict[int, Any] = {}
        for picture, image in enumerate(self.opened):
            own = [view for of, view in views if of == picture]
            found |= zip((views[picture, view] for view in own), read(image, own), strict=True)
        return torch.from_numpy(np.stack([found[number] for number in range(len(views))]))
