"""The forms of all layers that lose the least within a budget."""

from __future__ import annotations

from collections.abc import Mapping

from export.graphs.quantize import form
from export.graphs.targets import Choice

from .sensitivity import Losses

# How long a product of many positions takes in each form, one scale for all of them being one, on a CPU with
# AVX512-VNNI: read from an earlier measurement of such forms, and not measured again with today's.
_TIMES = {"dynamic8": 1.0, "8b128h": 1.67, "8b32h": 2.0}


def cost(word: str, unit: str) -> float:
    """Of a weight in a form: bits, scales and zero points included, or the time of a prompt's product."""
    if unit == "time":
        return _TIMES[word]
    grid = form(word).grid_of(0)
    assert grid is not None
    return grid.bits_a_weight


def cheapest_loss(losses: Losses, sizes: Mapping[str, int], choice: Choice) -> dict[str, str]:
    """layer -> form: from the cheapest on, the step that saves most for what it costs, while the budget lasts.

    `sizes` are the weights of each layer that is chosen for.
    """
    costs = {word: cost(word, choice.unit) for word in choice.forms}
    chosen = dict.fromkeys(sizes, choice.forms[0])
    left = (choice.mean - costs[choice.forms[0]]) * sum(sizes.values())
    while True:
        best, gain = None, 0.0
        for layer, word in chosen.items():
            for other in choice.forms:
                price = (costs[other] - costs[word]) * sizes[layer]
                saved = losses[layer][word] - losses[layer][other]
                if 0 < price <= left and saved / price > gain:
                    best, gain = (layer, other, price), saved / price
        if best is None:
            return chosen
        chosen[best[0]] = best[1]
        left -= best[2]
