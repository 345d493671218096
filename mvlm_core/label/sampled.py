"""Fewer rows than there are, drawn so that splits and tasks keep their shares. No torch."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from export.runtime.errors import MvlmError
from mvlm_core.data.remarks import half_width
from mvlm_core.data.row import Row


def sampled(rows: Sequence[Row], most: int | None) -> list[Row]:
    """At most so many of the rows, in their order: from each split and task its share, and at least one.

    Which ones is decided by a hash of their ids, so the same rows are drawn again and a larger sample holds a smaller
    one. Raises `MvlmError` for fewer than there are splits and tasks.
    """
    if most is None or most >= len(rows):
        return list(rows)
    strata: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        strata[row.split, row.task or ""].append(row)
    if most < len(strata):
        raise MvlmError(
            f"--max-rows {most} is fewer than the {len(strata)} tasks of the splits, each of which is to keep a row:"
            " allow more"
        )
    kept: set[str] = set()
    for name, count in _shares({name: len(of) for name, of in strata.items()}, most).items():
        kept.update(row.id for row in sorted(strata[name], key=lambda row: _drawn(row.id))[:count])
    return [row for row in rows if row.id in kept]


def worth(rows: Sequence[Row], of: int) -> str:
    """What a sample is worth, in a line: the interval that its test pictures buy, or else all of its pictures."""
    splits = Counter(row.split for row in rows)
    judged = [row for row in rows if row.split == "test"] or list(rows)
    pictures = len({row.group for row in judged})
    return (
        f"{len(rows):,} of {of:,} rows ({', '.join(f'{count:,} {split}' for split, count in splits.items())}); where"
        f" one answer in five changes between scales, the 95 % interval of {pictures:,} pictures is about"
        f" ±{half_width(pictures):.1f} points"
    )


def _shares(sizes: dict[tuple[str, str], int], most: int) -> dict[tuple[str, str], int]:
    """So many of each stratum, by the largest remainders, and none without any."""
    whole = sum(sizes.values())
    exact = {name: most * size / whole for name, size in sizes.items()}
    counts = {name: max(1, int(share)) for name, share in exact.items()}
    by_rest = sorted(sizes, key=lambda name: (counts[name] - exact[name], name))
    while missing := max(0, most - sum(counts.values())):
        for name in [name for name in by_rest if counts[name] < sizes[name]][:missing]:
            counts[name] += 1
    while sum(counts.values()) > most:  # small strata were given one
        counts[max(counts, key=lambda name: (counts[name], name))] -= 1
    return counts


def _drawn(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()
