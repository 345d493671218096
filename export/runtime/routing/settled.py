"""What a question costs here and now, and whether to choose for it at all: one fixed scale needs no features.

Letters: n rows, k scales, coarse to fine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .policy import Floats, Policy, Seen


def with_cache(costs: Floats, offered: Sequence[int], ready: Sequence[int], *, nested: bool) -> NDArray[np.float64]:
    """Costs (k,) where the prefix of some scales has been read already: such a scale costs as the coarsest does.

    Where scales are prefixes of each other, what was read of the largest serves the coarser ones whole, and spares the
    finer ones as much.
    """
    here = np.asarray(costs, np.float64).copy()
    at = [offered.index(m) for m in ready if m in offered]
    if not at:
        return here
    if not nested:
        here[at] = here[0]
        return here
    read = max(at)
    spared = here[read] - here[0]
    here[read + 1 :] -= spared
    here[: read + 1] = here[0]
    return here


def settle(policy: Policy, seen: Seen, price: float, overhead: float, cap: float = math.inf) -> int | None:
    """The scale that at this price is worth more for every question than choosing one for each, as an index.

    Expected on rows that travel with a router. Costs of the policy hold what choosing takes, `overhead`; a scale that
    is fixed does without. None where choosing is worth more, or where no scale is within the cap.
    """
    fixed = np.asarray(policy.cost, np.float64) - overhead
    worth = seen.probability.mean(axis=0) - price * fixed / policy.unit_cost  # (k,)
    worth = np.where(fixed <= cap, worth, -np.inf)
    best = int(worth.argmax())
    if not np.isfinite(worth[best]):
        return None
    chosen = policy.worth(seen, price, cap=cap) if (np.asarray(policy.cost) <= cap).any() else -math.inf
    return best if worth[best] >= chosen else None
