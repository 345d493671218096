"""Why a scale was taken, in a person's words.

Letters: k scales on offer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.runtime.views.scale import ScaleWord, tokens_said


def named_reason(scale: ScaleWord) -> str:
    """When nobody chose."""
    return f"{tokens_said(scale)}: the scale that was named"


def chosen_reason(
    offered: Sequence[ScaleWord], probability: NDArray[np.floating], costs: NDArray[np.floating], chosen: int
) -> str:
    """Set the choice beside the likeliest scale, or, when it is the likeliest, beside the next in line; probability
    and costs (k,)."""
    text = f"{tokens_said(offered[chosen])}: P(right) {probability[chosen]:.2f}"
    others = [i for i in range(len(offered)) if i != chosen]
    if not others:
        return f"{text}, and the bundle holds no other scale"
    other = max(others, key=lambda i: (probability[i], -costs[i]))
    ratio = costs[other] / costs[chosen]
    dearer = f"{ratio:.3g} times as much" if ratio > 1 else f"{1 / ratio:.3g} times less" if ratio < 1 else "as much"
    return f"{text} against {probability[other]:.2f} at {offered[other]}, which costs {dearer}"


def strange_reason(scale: ScaleWord, p_value: float) -> str:
    """When question and picture are out of distribution."""
    return (
        f"{tokens_said(scale)}: the finest allowed, since this question and picture are unlike those that the router"
        f" was fitted on (only {100 * p_value:.2g} % of them were as strange)"
    )
