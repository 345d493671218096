"""OpenAI's `detail` of a picture: how closely it is looked at, where nobody named a scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from export.runtime.request import Scale
from export.runtime.views.scale import ScaleWord, coarse_to_fine

from .body import BadField, short

AUTO = "auto"
DETAILS = (AUTO, "low", "high")


def details_of(parts: Iterable[Any]) -> tuple[str, ...]:
    """What each picture among the parts of a message says, of chat completions or of responses."""
    return tuple(detail_of(part) for part in parts if isinstance(part, Mapping) and "image_url" in part)


def detail_of(part: Mapping[str, Any]) -> str:
    """`auto`, `low` or `high`. Raises `BadField` for anything else."""
    image = part["image_url"]
    detail = image.get("detail") if isinstance(image, Mapping) else part.get("detail")
    if detail is None:
        return AUTO
    if not isinstance(detail, str) or detail not in DETAILS:
        raise BadField(f"detail is {short(detail)}: send low, high or auto, or leave it out", "detail")
    return detail


def scale_of_detail(detail: str, scales: Iterable[ScaleWord]) -> Scale | None:
    """The scale of a bundle that a detail stands for: `low` the coarsest, which is an overview, `high` the finest, and
    `auto` none, so that the router chooses."""
    ordered = coarse_to_fine(scales)
    ends: dict[str, Any] = {"low": ordered[0], "high": ordered[-1]}
    return ends.get(detail)
