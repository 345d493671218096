"""What a question costs here and now, and whether to choose for it at all: one fixed scale needs no features.

Letters: n rows, k scales, coarse to fine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.views.scale import ScaleWord

from .parts import Parts, Work
from .policy import Floats, Policy, Seen

_LEAST = 1e-6  # what costs nothing costs so much, for what divides by it


@dataclass(frozen=True)
class Here:
    """What the scales on offer cost a question here and now, (k,), and what of each is choosing."""

    costs: NDArray[np.float64]
    overhead: float


def here(
    usual: Floats, offered: Sequence[Any], parts: Parts, whole: Callable[[Any], Work], left: Callable[[Any], Work],
    answer_tokens: int, *, picture_seen: bool,
) -> Here:  # fmt: skip
    """What each scale costs where less is left to do than usual: `whole` is what costs (k,) usually stand for, `left`
    what is left of a question about a picture that has been looked at; that look counts as it usually does."""
    look = parts.looking_ms(1)
    spared = [parts.ms(whole(scale), answer_tokens) - parts.ms(left(scale), answer_tokens) - look for scale in offered]
    known = parts.choosing_ms(picture_seen=False) - parts.choosing_ms(picture_seen=picture_seen)
    costs = np.asarray(usual, np.float64) - np.array(spared) - known
    return Here(np.maximum(costs, _LEAST), parts.choosing_ms(picture_seen=picture_seen))


def with_cache(
    costs: Floats, offered: Sequence[ScaleWord], ready: Sequence[ScaleWord], *, nested: bool
) -> NDArray[np.float64]:
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


def settle_within(policy: Policy, seen: Seen, price: float, overhead: float, budget: float) -> int | None:
    """The scale that within a budget is right more often than choosing at the price that the budget comes to.

    None where choosing is, and where no scale is within the budget.
    """
    fixed = np.asarray(policy.cost, np.float64) - overhead
    right = np.where(fixed <= budget, seen.probability.mean(axis=0), -np.inf)  # (k,)
    best = int(right.argmax())
    if not np.isfinite(right[best]):
        return None
    spent = policy.mean_cost(seen, price)
    chosen = policy.worth(seen, price) + price * spent / policy.unit_cost if spent <= budget else -math.inf
    return best if right[best] >= chosen else None
