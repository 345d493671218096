"""A picture that has been looked at, as data: every scale, and any number of questions, follow from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from export.runtime.decode.conversation import Shelf

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Looked:
    """What was computed of a picture.

    Attributes:
        values: (1, P, ·), what the connectors read.
        words: (P, D), each patch as the language model would read it.
        image_features: (d_image,), what the router sees of the picture; None when the bundle holds no router.
        shelf: what the language model has read of the picture so far.
        read: (cells, channels), what a router that reads pictures made of it; None where there is no such router.
        timings: milliseconds by stage of looking.
    """

    values: Array = field(repr=False)
    words: Array = field(repr=False)
    image_features: Array | None = field(repr=False)
    shelf: Shelf = field(repr=False)
    timings: dict[str, float]
    read: Array | None = field(repr=False, kw_only=True, default=None)

    @cached_property
    def key(self) -> bytes:
        """A hash of what the connectors read: pictures with one key are the same to the language model."""
        return hashlib.sha256(self.values.tobytes()).digest()
