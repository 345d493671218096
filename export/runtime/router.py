"""Asks router.onnx how likely each scale is to answer right, and applies a price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import MvlmError
from .manifest import RouterFacts
from .sessions import Device, open_session

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Choice:
    """A scale, how likely each scale on offer is to answer right, and the reason in a person's words."""

    scale: int
    probabilities: dict[int, float]
    reason: str


class Router:
    """The predictor inside a bundle, over those of its scales that the bundle offers."""

    def __init__(self, path: Path, facts: RouterFacts, offered: Sequence[int], device: Device) -> None:
        self.facts = facts
        self._session = open_session(path, device)
        self._offered = [facts.scales.index(scale) for scale in offered]

    def probabilities(self, image: Array, question: Array) -> Array:
        """P(right) at each scale of the router: (d_image,), (d_question,) -> (K,)."""
        feeds = {
            "image": image[None],  # (1, d_image)
            "question": question[None],  # (1, d_question)
            "price": np.asarray(self.facts.default_price, np.float32),
            "cost": np.asarray(self.facts.costs, np.float32),  # (K,)
        }
        return self._session.run(["probability"], feeds)[0][0]

    def choose(self, image: Array, question: Array, price: float | None = None) -> Choice:
        """The best scale on offer. `price` is what one unit of normalised cost is worth; None takes the router's own.

        Raises `MvlmError` for a price that is negative or no number.
        """
        price = self.facts.default_price if price is None else price
        require_price(price)
        probability = self.probabilities(image, question)[self._offered]  # (offered,)
        cost = np.asarray(self.facts.costs, np.float32)
        relative = (cost / cost.max())[self._offered]  # the router's own dearest scale stays the unit of the price
        chosen = best(probability, relative, price)
        scales = [self.facts.scales[i] for i in self._offered]
        return Choice(
            scales[chosen],
            {scale: float(p) for scale, p in zip(scales, probability, strict=True)},
            _reason(scales, probability, relative, chosen),
        )


def best(probability: Array, relative_cost: Array, price: float) -> int:
    """argmax of probability - price * cost, ties to the cheaper: (K,), (K,) -> an index."""
    worth = probability - np.float32(price) * relative_cost  # (K,)
    return int(np.lexsort((relative_cost, -worth))[0])


def require_price(price: float) -> None:
    """Raise `MvlmError` unless `price` is a number from 0 up."""
    if not (math.isfinite(price) and price >= 0):
        raise MvlmError(f"the price is {price}: give a number from 0 up", code="bad-price")


def _reason(scales: Sequence[int], probability: Array, cost: Array, chosen: int) -> str:
    """Set the choice beside the likeliest scale, or, when it is the likeliest, beside the next in line."""
    text = f"{_tokens(scales[chosen])}: P(right) {probability[chosen]:.2f}"
    others = [i for i in range(len(scales)) if i != chosen]
    if not others:
        return f"{text}, and the bundle holds no other scale"
    other = max(others, key=lambda i: (probability[i], -cost[i]))
    ratio = cost[other] / cost[chosen]
    costs = f"{ratio:.3g} times as much" if ratio > 1 else f"{1 / ratio:.3g} times less" if ratio < 1 else "as much"
    return f"{text} against {probability[other]:.2f} at {scales[other]}, which costs {costs}"


def named_reason(scale: int) -> str:
    """The reason when nobody chose."""
    return f"{_tokens(scale)}: the scale that was named"


def _tokens(scale: int) -> str:
    return f"{scale} token" if scale == 1 else f"{scale} tokens"
