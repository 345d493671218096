"""The router's own view of a picture and a question, at many prices: what the page's slider shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from export.runtime.data_url import read_data_url
from export.runtime.engine import Runtime
from export.runtime.errors import MvlmError
from export.runtime.routing.by_picture import in_tokens
from export.runtime.view import View

from .body import BadField, read_json, require_text
from .limits import Limits
from .worker import Job

_MOST_PRICES = 256


@dataclass(frozen=True)
class Asked:
    """A question about a picture, and the prices to choose at; None is the router's own."""

    picture: bytes
    question: str
    prices: tuple[Any, ...]


def read_question(body: bytes | bytearray, limits: Limits) -> Asked:
    """Raises `MvlmError` for anything else."""
    value = read_json(body)
    picture, question = read_data_url(value.get("picture"), limits.picture_bytes), value.get("question")
    if not isinstance(question, str) or len(question) > limits.question_characters:
        raise BadField(
            f"the question is no text of at most {limits.question_characters} characters", "question", code="too-long"
        )
    prices = value.get("prices") or [None]
    if not isinstance(prices, list) or len(prices) > _MOST_PRICES:
        raise BadField(f"prices is no list of at most {_MOST_PRICES} numbers", "prices", code="bad-price")
    return Asked(picture, require_text(question, "the question"), tuple(prices))


def choices_at(runtime: Runtime, view: View, asked: Asked, job: Job) -> dict[str, Any]:
    """What the router thinks, and its choice at each price; it ends early once nobody waits."""
    choices = []
    for choice in view.choose_at(asked.question, asked.prices):
        choices.append(choice)
        if job.stopped:
            raise MvlmError("the caller has gone", code="closed")
    router = runtime.router
    assert router is not None  # `choose_at` would have raised
    laid = [view.at(scale).laid for scale in router.offered]
    costs = in_tokens(router, view, anew=True)  # with tiles, what this picture costs
    return {
        "scales": list(router.offered), "probabilities": list(choices[0].probabilities.values()),
        "tokens": [one.num_visual_tokens for one in laid], "tiles": [list(one.tiles) for one in laid],
        "costs": (router.costs if costs is None else costs).tolist(), "cost_unit": router.facts.cost_unit,
        "choices": [choice.scale for choice in choices], "reasons": [choice.reason for choice in choices],
        "out_of_distribution": choices[0].out_of_distribution, "patches": view.words.shape[0],
    }  # fmt: skip
