"""Which numbers of visual tokens a connector allows. No torch: configurations are checked before anything loads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from export.runtime.errors import MvlmError
from export.runtime.families import POOLED, Family
from export.runtime.views.scale import NATIVE, Scale, ScaleWord, parse_words


def pool_scales(grid_side: int) -> tuple[int, ...]:
    """The scales of average pooling: squares whose side divides the side of the patch grid (M3, arXiv 2405.17430)."""
    return tuple(side * side for side in range(1, grid_side + 1) if grid_side % side == 0)


def query_scales(num_queries: int) -> range:
    """The scales of a query connector: every prefix of its queries (MQT, arXiv 2405.19315)."""
    return range(1, num_queries + 1)


def nested_sides(grid_side: int) -> tuple[int, ...]:
    """Sides of grids, coarse to fine, each a divisor of the next: from the finest down, by its smallest prime factor.

    24 gives 1, 3, 6, 12, 24, the grids of M3 (arXiv 2405.17430).
    """
    sides = [grid_side]
    while sides[0] > 1:
        factor = next(k for k in range(2, sides[0] + 1) if sides[0] % k == 0)
        sides.insert(0, sides[0] // factor)
    return tuple(sides)


def nested_pool_scales(grid_side: int) -> range:
    """The scales of nested grids: every prefix. The squares of `nested_sides` are whole grids."""
    return range(1, grid_side**2 + 1)


def family_scales(family: Family, grid_side: int, num_queries: int) -> Sequence[int]:
    """The scales of a family's connector on a grid of that side, or with that many queries."""
    if family not in POOLED:
        return query_scales(num_queries)
    return pool_scales(grid_side) if family == "pool" else nested_pool_scales(grid_side)


def require_scales(asked: Iterable[ScaleWord], allowed: Sequence[int]) -> None:
    """Raise `MvlmError` naming every scale of `asked` that is not allowed, and those that are. Nothing is rounded.

    Of a scale with tiles the tokens of a view count, and `native` is always allowed.
    """
    tokens = {scale: Scale.parse(scale).tokens for scale in asked}
    wrong = [scale for scale, count in tokens.items() if count is not None and count not in allowed]
    if wrong:
        many = isinstance(allowed, range)
        names = f"every number from {allowed[0]} to {allowed[-1]}" if many else ", ".join(map(str, allowed))
        raise MvlmError(
            f"this connector cannot show a picture in {', '.join(map(str, wrong))} tokens: it allows {names}",
            code="scale-not-allowed",
        )


def parse_scales(text: str) -> tuple[int, ...]:
    """Read `9,36,144`, or with ranges `1-16,64`, in ascending order.

    Raises `MvlmError` for anything else, repetitions included.
    """
    scales: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            scales += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise MvlmError(
            f"{text!r} is not a list of scales: write numbers between commas, as in 9,36,144, or a range, as in 1-64"
        ) from None
    if not scales or len(set(scales)) != len(scales) or min(scales) < 1:
        raise MvlmError(f"{text!r} is not a list of scales: each must be at least 1 and stand once")
    return tuple(sorted(scales))


def read_words(text: str) -> tuple[ScaleWord, ...]:
    """As `parse_scales`, scales with tiles among them (`4,16@4,native`): words of scales in ascending order."""
    if "@" not in text and NATIVE not in text:
        return parse_scales(text)
    return tuple(scale.word for scale in parse_words(text))
