"""What each connector family allows and nests, said once for training, export and device. No torch."""

from __future__ import annotations

import sys
from functools import cache
from typing import Literal, get_args

Family = Literal["pool", "nested_pool", "query"]
FAMILIES: tuple[Family, ...] = get_args(Family)
# Those whose coarse tokens are the first of the finer ones: what was read of them holds at every finer scale.
PREFIX_NESTED: frozenset[str] = frozenset({"nested_pool", "query"})
# Those that average the patches; the others learn queries.
POOLED: frozenset[str] = frozenset({"pool", "nested_pool"})
_FORMER_NAMES = {"haar": "nested_pool"}


def current_name(family: str) -> str:
    """The family's name of today. An older name is taken, and one line on standard error says so."""
    if family not in _FORMER_NAMES:
        return family
    _say_renamed(family)
    return _FORMER_NAMES[family]


@cache
def _say_renamed(family: str) -> None:
    print(f"note: the connector {family} is called {_FORMER_NAMES[family]} now; it is read as that", file=sys.stderr)
