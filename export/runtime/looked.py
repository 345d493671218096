"""A picture that has been looked at, as data: every scale, and any number of questions, follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from export.runtime.decode.conversation import Shelf

from .pictured import Pictured
from .views.cutting import Size
from .views.scale import ScaleWord
from .views.seen import Seen

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Sight:
    """What a router sees of a picture: features (d_image,), and what a router that reads pictures made of it (cells,
    channels), None for one that does not."""

    features: Array
    read: Array | None


@dataclass(frozen=True)
class Looked:
    """What was computed of a picture.

    Attributes:
        seen: the views of it that have been encoded: the overview, and others once a scale has needed them.
        words: (P, D), each patch of the overview as the language model would read it.
        at: what stands for it at a scale.
        shelf: what the language model has read of the picture so far.
        timings: milliseconds by stage of looking.
        see: what makes of `words` what the router sees; None when the bundle holds no router.
    """

    seen: Seen = field(repr=False)
    words: Array = field(repr=False)
    at: Callable[[ScaleWord], Pictured] = field(repr=False)
    shelf: Shelf = field(repr=False)
    timings: dict[str, float]
    see: Callable[[Array], Sight] | None = field(repr=False, kw_only=True, default=None)

    @property
    def values(self) -> Array:
        """(1, P, ·), what the connectors read of the overview."""
        return self.seen.overview

    @property
    def size(self) -> Size:
        """Height and width of the picture in pixels."""
        return self.seen.size

    @cached_property
    def sight(self) -> Sight | None:
        """What the router sees, made when it first asks: a picture that it need not look at costs it nothing."""
        return None if self.see is None else self.see(self.words)

    @property
    def seen_by_router(self) -> bool:
        """Whether what the router sees was made already."""
        return "sight" in self.__dict__

    @property
    def image_features(self) -> Array | None:
        """(d_image,); None when the bundle holds no router."""
        return self.sight.features if self.sight else None

    @property
    def key(self) -> bytes:
        """A hash of what the connectors read: pictures with one key look the same to the router."""
        return self.seen.key
