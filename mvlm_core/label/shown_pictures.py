"""The pictures of a part at every scale: each view encoded once for all of them.

Letters: B pictures, P tokens of a view, L places of a picture in a row (marks and newlines too), D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from export.runtime.views.cutting import OVERVIEW, View
from export.runtime.views.scale import ScaleWord
from mvlm_core.data.pictures import PictureSource
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor, stitch_tensors
from mvlm_core.train.step_pictures import StepPictures

# Tiles are encoded so many at a time, as a part may hold hundreds.
_TILES = 32


class ShownPictures:
    """Pictures with all the views that some scales want of them, encoded."""

    def __init__(
        self, model: MvlmForConditionalGeneration, processor: MvlmProcessor, sources: Sequence[PictureSource],
        scales: Sequence[ScaleWord],
    ) -> None:  # fmt: skip
        self.model, self.pictures = model, StepPictures(processor, sources)
        runs = [(picture, scale) for scale in scales for picture in range(len(sources))]
        self._place: dict[tuple[int, View], int] = self.pictures.views(runs)
        pixels = self.pictures.pixels(self._place)
        parts = [pixels[: len(sources)], *pixels[len(sources) :].split(_TILES)]  # the overviews come first
        with torch.inference_mode():
            encoded = [model.encode_images(part.to(model.device, model.dtype)) for part in parts if len(part)]
            self.values = torch.cat(encoded)  # (views, P, ·)
            self.words = model.connector.words(self.values[: len(sources)])  # (B, P, D), of the overviews

    def count(self, picture: int, scale: ScaleWord) -> int:
        """The tokens that a picture takes in a row, marks and newlines counted."""
        return len(self.pictures.ids(picture, scale))

    def tiles(self, picture: int, scale: ScaleWord) -> int:
        """The views of a picture that are encoded for a scale beside its overview."""
        return sum(view != OVERVIEW for view in self.pictures.shown(picture, scale).views)

    def size(self, picture: int) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        opened = self.pictures.opened[picture]
        return (opened.height, opened.width) if isinstance(opened, Image.Image) else opened.size

    def alike(self, scale: ScaleWord) -> list[list[int]]:
        """The pictures in lists of those that take as many tokens."""
        found: dict[int, list[int]] = defaultdict(list)
        for picture in range(len(self.pictures.opened)):
            found[self.count(picture, scale)].append(picture)
        return list(found.values())

    @torch.inference_mode()
    def embeds(self, pictures: Sequence[int], scale: ScaleWord) -> Tensor:
        """What stands for pictures that take as many tokens: (B, L, D)."""
        return torch.stack([self._embeds(picture, scale) for picture in pictures])

    def places(self, picture: int, scale: ScaleWord) -> list[int]:
        """Where in `values` the views of a picture at a scale stand, in their order."""
        return [self._place[picture, view] for view in self.pictures.shown(picture, scale).views]

    def _embeds(self, picture: int, scale: ScaleWord) -> Tensor:
        model: Any = self.model
        shown, places = self.pictures.shown(picture, scale), self.places(picture, scale)
        visual = model.visual_tokens(self.values, places, [shown.tokens] * len(places))  # (views m, D)
        stitch = {name: tensor.to(model.device) for name, tensor in stitch_tensors([shown]).items()}
        if stitch:
            visual = model.stitched(visual, **stitch)
        ids = torch.tensor([self.pictures.ids(picture, scale)], device=model.device)  # (1, L)
        return model.placed(ids, visual)[0]
