"""What the scores of labels measure, in words: from the facts of labels.json and the target of a fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RIGHT, GRADED, AGREEING = "right answers", "mean score", "answers that agree with the finest scale"
LIKELY = "likelihood of the reference answers' tokens"
# Under these an answer is right or wrong, so that the probability of the reference answer says how often it is right.
RIGHT_OR_WRONG = frozenset({"exact", "choice", "yes_no", "number"})
# Metrics of which a score is 0 or 1.
_WHOLE = RIGHT_OR_WRONG | {"relaxed", "contains", "agreement"}


def measured(facts: Mapping[str, Any], target: str) -> str:
    """What the scores measure."""
    if target == "likelihood":
        return LIKELY
    metrics = facts.get("metrics", {})
    if target == "agreement" or (metrics and all(name.startswith("agreement") for name in metrics)):
        return AGREEING
    return RIGHT if _WHOLE.issuperset(name.partition(":")[0] for name in metrics) else GRADED


def scored_by(facts: Mapping[str, Any], target: str) -> str:
    """Which metrics made the scores; empty where labels of an earlier version do not say it."""
    metrics, guessed = facts.get("metrics", {}), facts.get("metrics_guessed", {})
    if not metrics or target != "score":
        return ""
    told = "scored by " + ", ".join(f"{name} ({count:,} rows)" for name, count in metrics.items())
    told += " (guessed)" if guessed else ""
    if any(name.startswith("agreement") for name in metrics):
        told += "; agreement says where fewer tokens answer as the finest scale does, not whether that is right"
    return told
