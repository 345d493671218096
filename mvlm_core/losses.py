"""What each stage of the recipe minimises.

Letters: B pictures, S positions of a packed row, P patches, D width of the language model, W words of a tag group.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .dataset import Batch, TagGroup
from .model import IGNORED_LABEL, MvlmForConditionalGeneration

# A patch that shows nothing of a group says so too, but most patches do: they count for less.
_NOTHING_WEIGHT = 0.3
_NOTHING_WEIGHT_RARE = 0.03
_RARE_WORDS = 16


def answer_loss(model: MvlmForConditionalGeneration, batch: Batch, *, patch_loss_weight: float = 0.0) -> Tensor:
    """Mean nats per supervised token, plus some of the patch loss."""
    output = model(
        input_ids=batch.input_ids, pixel_values=batch.pixel_values, num_visual_tokens=batch.num_visual_tokens,
        attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False,
    )  # fmt: skip
    labels = batch.labels[:, 1:]  # (B, S - 1)
    supervised = labels != IGNORED_LABEL
    loss = F.cross_entropy(output.logits[:, :-1][supervised].float(), labels[supervised])
    if patch_loss_weight:
        loss = loss + patch_loss_weight * word_loss(model, output.image_values, batch.tags)
    return loss


def patch_loss(model: MvlmForConditionalGeneration, batch: Batch) -> Tensor:
    """The patch loss alone: no language model runs."""
    return word_loss(model, model.encode_images(batch.pixel_values), batch.tags)


def word_loss(model: MvlmForConditionalGeneration, values: Tensor, tags: list[TagGroup]) -> Tensor:
    """Each patch, as the language model would read it, is to name what it shows, in the model's own words.

    `values` (B, P, ·) are the connector's; the logits of a group are the products with the rows of the embedding
    table for its words, beside a constant 0 for nothing (a logit lens on the connector; feasibility.md part 2).
    """
    words = model.connector.words(values).float()  # (B, P, D)
    table = model.embedding_table
    losses = []
    for word_ids, shown, _ in tags:
        logits = words @ table[word_ids].float().T  # (B, P, W)
        logits = torch.cat([torch.zeros_like(logits[..., :1]), logits], dim=-1)  # (B, P, 1 + W)
        weight = torch.ones(logits.shape[-1], device=logits.device)
        weight[0] = _NOTHING_WEIGHT_RARE if len(word_ids) > _RARE_WORDS else _NOTHING_WEIGHT
        losses.append(F.cross_entropy(logits.flatten(0, 1), shown.flatten(), weight=weight))
    weights = torch.tensor([weight for *_, weight in tags], device=words.device)
    return (torch.stack(losses) * weights).sum() / weights.sum()
