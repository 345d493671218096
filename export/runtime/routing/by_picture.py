"""What each scale costs one picture, where pictures have tiles: as many as there are, and none is paid for twice.

Letters: k scales on offer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .router import Router, Terms

if TYPE_CHECKING:
    from export.runtime.looked import Looked

# Of a scale that must not be chosen, beyond every cap.
_NEVER = 1e30


def in_tokens(router: Router, looked: Looked, *, anew: bool = False) -> NDArray[np.float64] | None:
    """The positions of a picture at each scale, and for each tile that is yet to be encoded what that is worth: (k,).
    `anew`: as if none were encoded yet.

    None where a scale costs every picture the same, or where costs are in another unit.
    """
    worth = router.facts.tile_tokens
    if worth is None or router.costs_replaced or router.facts.cost_unit != "tokens":
        return None
    costs = []
    for at in map(looked.at, router.offered):
        views = at.laid.shown.views
        costs.append(len(at) + worth * (len(views) - 1 if anew else len(looked.seen.missing(views))))
    return np.array(costs, np.float64)


def only(
    allowed: NDArray[np.bool_], costs: NDArray[np.float64], terms: Terms, least: float
) -> tuple[Terms, NDArray[np.float64]]:  # fmt: skip
    """Terms and costs (k,) by which some scales alone are chosen from; at least one is allowed. No cap below `least`,
    what the cheapest scale usually costs, is made of them: what was read already may cost less."""
    dearest = max(float(costs[allowed].max()), least)
    cap = dearest if terms.cap is None else min(terms.cap, dearest)
    return replace(terms, cap=cap), np.where(allowed, costs, _NEVER)
