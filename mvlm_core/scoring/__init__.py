"""Is this answer right: metrics by name, each 0 to 1. No torch."""

from .edit_distance import anls
from .matching import contains, exact, f1, yes_no
from .metrics import METRICS, Metric, Reference, agreement, fault, guess, read_metric, score, score_with
from .numbers import number, relaxed
from .options import choice, chosen_option
from .vqa_accuracy import vqa, vqa_normalise

__all__ = [
    "METRICS", "Metric", "Reference", "agreement", "anls", "choice", "chosen_option", "contains", "exact", "f1",
    "fault", "guess", "number", "read_metric", "relaxed", "score", "score_with", "vqa", "vqa_normalise", "yes_no",
]  # fmt: skip
