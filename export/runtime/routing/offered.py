"""Which scales a bundle offers of those that its router was fitted for, and the numbers that stand for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from export.runtime.errors import MvlmError
from export.runtime.views.scale import ScaleWord


def offered_scales(fitted: Sequence[ScaleWord], offered: Sequence[ScaleWord]) -> tuple[Any, ...]:
    """The scales on offer in the order of their costs. Raises `MvlmError` for some that the router knows nothing of:
    among numbers of tokens it knows all between its ends, and with tiles those that it was fitted for."""
    if with_tiles([*fitted, *offered]):
        unknown = [str(scale) for scale in offered if scale not in fitted]
        if unknown or not offered:
            raise MvlmError(
                f"the router was fitted for {', '.join(map(str, fitted))}, and not for {', '.join(unknown) or 'none'}:"
                " label those scales and fit again"
            )
        return tuple(scale for scale in fitted if scale in offered)
    numbers = sorted(int(scale) for scale in offered)
    outside = [m for m in numbers if not int(fitted[0]) <= m <= int(fitted[-1])]
    if outside or not numbers:
        raise MvlmError(
            f"the router was fitted for {fitted[0]} to {fitted[-1]} tokens, and {outside or 'none'} of the bundle's"
            " scales lies outside: label those scales and fit again"
        )
    return tuple(numbers)


def known_to(fitted: Sequence[ScaleWord], offered: Sequence[ScaleWord]) -> bool:
    """Whether a router that was fitted for some scales knows all those on offer."""
    try:
        return bool(offered_scales(fitted, offered))
    except MvlmError:
        return False


def sizes_of(scales: Sequence[ScaleWord], fitted: Sequence[ScaleWord], sizes: Sequence[float]) -> tuple[float, ...]:
    """The number that stands for each scale in the graph: that of the fit, or the tokens of one between two of them."""
    known = dict(zip(fitted, sizes, strict=True))
    return tuple(known[scale] if scale in known else float(scale) for scale in scales)


def with_tiles(scales: Iterable[ScaleWord]) -> bool:
    """Whether any of the scales shows more than the overview."""
    return any(isinstance(scale, str) for scale in scales)
