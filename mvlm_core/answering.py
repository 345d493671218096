"""Many questions about the same pictures, answered greedily in one batch: each picture is read once a scale.

Letters: B pictures, n rows (questions), m visual tokens, T positions of the longest text after the picture, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from .model import MvlmForConditionalGeneration


@dataclass(frozen=True)
class Answered:
    """One greedy answer: its ids without the stop token, and the probability that the model gave to all of it."""

    token_ids: list[int]
    confidence: float


@dataclass(frozen=True)
class Asked:
    """One question about one picture of the batch, as the ids that follow the picture."""

    picture: int
    ids_after: list[int]


@torch.inference_mode()
def answer_greedily(
    model: MvlmForConditionalGeneration, ids_before: Sequence[int], visual: Tensor, asked: Sequence[Asked], max_new_tokens: int
) -> list[Answered]:
    """`ids_before`, the visual tokens (B, m, D) and what is asked -> an answer to each question.

    The cache of what stands before the questions is computed once a picture and copied to its rows, which is the same
    as asking one at a time (a test compares it with `generate`).
    """
    embed = model.get_input_embeddings()
    device = visual.device
    before = embed(torch.tensor([ids_before], device=device)).expand(len(visual), -1, -1)  # (B, ·, D)
    prefix = torch.cat([before, visual], dim=1)  # (B, · + m, D)
    cache: DynamicCache = model.language_model(inputs_embeds=prefix, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_select_indices(torch.tensor([row.picture for row in asked], device=device))

    longest = max(len(row.ids_after) for row in asked)
    gaps = torch.tensor([longest - len(row.ids_after) for row in asked], device=device)  # (n,)
    ids = torch.tensor([[0] * (longest - len(row.ids_after)) + row.ids_after for row in asked], device=device)  # (n, T)
    places = torch.arange(longest, device=device)[None] - gaps[:, None]  # (n, T), below 0 in the gap
    mask = torch.cat([torch.ones(len(asked), prefix.shape[1], device=device), (places >= 0).float()], dim=1).long()
    positions = prefix.shape[1] + places.clamp(min=0)  # (n, T)

    stop = model.generation_config.eos_token_id
    answers: list[list[int]] = [[] for _ in asked]
    log_probability = torch.zeros(len(asked), device=device)
    alive = torch.ones(len(asked), dtype=torch.bool, device=device)
    for _ in range(max_new_tokens):
        output = model.language_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        best, chosen = output.logits[:, -1].float().log_softmax(dim=-1).max(dim=-1)  # (n,)
        log_probability += best * alive
        alive &= chosen != stop
        for row, token in enumerate(chosen.tolist()):
            if alive[row]:
                answers[row].append(token)
        if not alive.any():
            break
        ids, positions = chosen[:, None], positions[:, -1:] + 1  # (n, 1)
        mask = torch.cat([mask, mask.new_ones(len(asked), 1)], dim=1)
    return [Answered(a, p) for a, p in zip(answers, log_probability.exp().tolist(), strict=True)]
