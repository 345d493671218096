"""The views of one picture that have been encoded: the overview from the start, others when a scale needs them.

Letters: n views, P patches of a view.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from export.runtime.answer import Clock

from .cutting import OVERVIEW, Size, View

Array = NDArray[np.float32]
# Of one picture; what the scale in hand needs is kept in any case.
MOST_BYTES = 256 * 2**20


class Seen:
    """Safe to use from several threads: no view is encoded twice."""

    def __init__(
        self, overview: Array, size: Size, encode: Callable[[Sequence[View], Clock], Array] | None = None,
        name: Callable[[], bytes] = bytes, *, more: str = "", most_bytes: int = MOST_BYTES,
    ) -> None:  # fmt: skip
        """`overview` (1, P, ·) is what the connectors read of it, and `size` (height, width) the picture's in pixels.

        `encode` makes the same of other views, (n, P, ·); None for a picture that has none. `name` tells pictures apart
        that have other views; `more` is what a choice depends on beside overview and size.
        """
        self.size, self._encode, self._name, self._most = size, encode, name, most_bytes
        self._told = f"{size} {more}".encode() if encode else b""
        self._held: OrderedDict[View, Array] = OrderedDict({OVERVIEW: overview})
        self._lock = threading.Lock()

    @property
    def overview(self) -> Array:
        """(1, P, ·)."""
        return self._held[OVERVIEW]

    @cached_property
    def key(self) -> bytes:
        """A hash of what the connectors read of the overview, and of the size where there are other views."""
        return hashlib.sha256(self.overview.tobytes() + self._told).digest()

    @cached_property
    def _key_of_others(self) -> bytes:
        return self._name()

    def key_of(self, view: View) -> Hashable:
        """What names a view among those of all pictures, known before it is encoded."""
        return self.key if view == OVERVIEW else (self._key_of_others, view)

    def missing(self, views: Sequence[View]) -> list[View]:
        """Those that have not been encoded yet, each once; it waits for none that are being encoded."""
        return [view for view in dict.fromkeys(views) if view not in self._held]

    def values(self, views: Sequence[View], clock: Clock) -> Array:
        """What the connectors read of views, (n, P, ·); those that are new are encoded together."""
        with self._lock:
            if new := self.missing(views):
                assert self._encode is not None
                encoded = self._encode(new, clock)
                for view, values in zip(new, np.split(encoded, len(new)), strict=True):
                    self._held[view] = values.copy()  # so that one can be forgotten without the others
            for view in views:
                self._held.move_to_end(view)
            found = [self._held[view] for view in views]
            self._forget(set(views))
        return found[0] if len(found) == 1 else np.concatenate(found)

    @property
    def held_bytes(self) -> int:
        return sum(values.nbytes for values in self._held.values())

    def _forget(self, needed: set[View]) -> None:
        over = self.held_bytes - self._most
        for view in [view for view in self._held if view != OVERVIEW and view not in needed]:
            if over <= 0:
                return
            over -= self._held.pop(view).nbytes
