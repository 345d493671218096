"""What training minimises, as functions of tensors.

Letters: N rows, S positions of a row, B pictures, P patches, D width of the language model, W words of a tag group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED_LABEL = -100
# What each patch shows of one group of words: the words' ids (W,), (B, P) with 0 for nothing and i for the i-th word,
# and how much the group counts. A bare tuple, so that whoever moves batches to a device finds the tensors.
TagGroup = tuple[Tensor, Tensor, float]

# A patch that shows nothing of a group says so too, but most patches do: they count for less.
_NOTHING_WEIGHT = 0.3
_NOTHING_WEIGHT_RARE = 0.03
_RARE_WORDS = 16


def answer_loss(hidden: Tensor, labels: Tensor, head: nn.Module, num_items: Tensor | int | None) -> Tensor:
    """Nats of the supervised tokens, `num_items` of which are in the whole step; None: the mean of these.

    hidden (N, S, D), labels (N, S). Only the positions that are followed by a supervised token go through the head:
    with a vocabulary of many thousands, the logits of the others are most of the memory.
    """
    labels = labels[:, 1:]  # (N, S - 1)
    supervised = labels != IGNORED_LABEL
    logits = head(hidden[:, :-1][supervised]).float()  # (supervised, V)
    nats = F.cross_entropy(logits, labels[supervised], reduction="sum")
    return nats / (supervised.sum() if num_items is None else num_items)


def word_loss(words: Tensor, table: Tensor, tags: Sequence[TagGroup]) -> Tensor:
    """Each patch, as the language model would read it, is to name what it shows, in the model's own words.

    words (B, P, D); table (V, D) is the embedding table; the weights of `tags` are summed up. The
    logits of a group are the products with the rows of the table for its words, beside a constant 0 for nothing (a
    logit lens on the connector; feasibility.md part 2).
    """
    losses = []
    for word_ids, shown, weight in tags:
        logits = words.float() @ table[word_ids].float().T  # (B, P, W)
        logits = torch.cat([torch.zeros_like(logits[..., :1]), logits], dim=-1)  # (B, P, 1 + W)
        class_weight = torch.ones(logits.shape[-1], device=logits.device)
        class_weight[0] = _NOTHING_WEIGHT_RARE if len(word_ids) > _RARE_WORDS else _NOTHING_WEIGHT
        losses.append(weight * F.cross_entropy(logits.flatten(0, 1), shown.flatten(), weight=class_weight))
    return torch.stack(losses).sum()
