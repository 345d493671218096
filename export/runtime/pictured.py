"""A picture at a scale as the language model reads it: position by position what it is, and its embedding.

Letters: L positions of the picture, n views, m tokens of each, T placeholders, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .answer import Clock
from .encoder import Encoder
from .views.cutting import View
from .views.laid import Laid
from .views.scale import ScaleWord
from .views.seen import Seen
from .views.shown import Stitch

Array = NDArray[np.float32]
_NEWLINE = "newline"


class Pictured:
    """One picture at one scale."""

    def __init__(
        self, scale: ScaleWord, laid: Laid, seen: Seen, encoder: Encoder, rows: Callable[[Sequence[int]], Array], *,
        nested: bool,
    ) -> None:  # fmt: skip
        """`rows` gives the embeddings of ids. `nested`: the tokens of a view are the first ones of any finer scale."""
        self.scale, self.laid, self._seen = scale, laid, seen
        self._encoder, self._rows, self._nested = encoder, rows, nested

    def __len__(self) -> int:
        return len(self.laid)

    def identities(self) -> Sequence[Hashable]:
        """One for each position; pictures with the same first ones read the same there."""
        return self._identities

    @cached_property
    def _identities(self) -> list[Hashable]:
        shown, found = self.laid.shown, list[Hashable](self.laid.ids)
        names: list[Hashable] = [
            (self._seen.key_of(view), place) if self._nested else (self._seen.key_of(view), shown.tokens, place)
            for view in shown.views
            for place in range(shown.tokens)
        ]  # fmt: skip
        visual: Sequence[Hashable] = names if shown.stitch is None else _stitched_names(names, shown.stitch)
        for place, name in zip(self.laid.places.tolist(), visual, strict=True):
            found[place] = name
        return found

    def embeddings(self, since: int, clock: Clock) -> Array:
        """What stands behind its first `since` positions: (L - since, D). Views that nobody has needed are encoded."""
        if since >= len(self):
            clock.add("connector", 0.0)
            return self._rows([0])[:0]
        shown, places, first = self.laid.shown, self.laid.places, self._first(since)
        views = self.views_behind(since)
        values = self._seen.values(views, clock) if views else None
        with clock.stage("connector"):
            ids = np.asarray(self.laid.ids)
            ids[places] = 0
            found = self._rows(ids.tolist())
            if values is not None:
                tokens = self._encoder.tokens(values, shown.tokens).reshape(-1, found.shape[1])  # (n m, D)
                found[places[first * shown.tokens :]] = self._put_together(tokens, shown.stitch)
            return found[since:]

    def encode(self, since: int, clock: Clock) -> None:
        """Encode what `embeddings` would, so that it finds it ready."""
        if views := self.views_behind(since):
            self._seen.values(views, clock)

    def views_behind(self, since: int) -> list[View]:
        """The views that are needed for what stands behind its first `since` positions."""
        return self.laid.shown.views[self._first(since) :] if since < len(self) else []

    def _first(self, since: int) -> int:
        """The first view that is needed: none whose tokens all stand before, unless tokens are made of several's."""
        shown = self.laid.shown
        return 0 if shown.stitch else int(np.searchsorted(self.laid.places, since)) // shown.tokens

    def _put_together(self, tokens: Array, stitch: Stitch | None) -> Array:
        """(n m, D) -> (T, D)."""
        if stitch is None:
            return tokens
        assert self._encoder.newline is not None  # `read_manifest` saw to it
        rows = np.concatenate([tokens, self._encoder.newline[None]])[stitch.sources]  # (T, k, D)
        together: Array = (rows * stitch.weights[..., None]).sum(axis=1)
        return together


def _stitched_names(names: list[Hashable], stitch: Stitch) -> list[Hashable]:
    """One for each placeholder: that of the token it is, or those of all that it is made of, with their shares."""
    base = [*names, _NEWLINE]  # the newline's number is -1
    if stitch.sources.shape[1] == 1:
        return [base[number] for number in stitch.sources[:, 0].tolist()]
    mixed = [
        tuple((base[number], share) for number, share in zip(numbers, shares, strict=True) if share)
        for numbers, shares in zip(stitch.sources.tolist(), stitch.weights.tolist(), strict=True)
    ]
    return [parts[0][0] if len(parts) == 1 and parts[0][1] == 1 else parts for parts in mixed]
