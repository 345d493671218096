"""All questions of a picture, answered behind one copy of it: what packing is to training, for labels.

Letters: B pictures, Q questions of the picture that has most, m visual tokens, S positions written so far, D width,
V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from mvlm_core.modeling.kv_cache import cache_argument, cache_of
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.train.packing import PADDING, PREFIX, block_mask


@dataclass
class Answered:
    """One answer: its ids without the stop token, and the probability that the model gave to all of it.

    `margin` is by how much the likeliest first token was likelier than the next likely one.
    """

    token_ids: list[int] = field(default_factory=list)
    confidence: float = 1.0
    margin: float | None = None


@torch.inference_mode()
def answer_together(
    model: MvlmForConditionalGeneration,
    ids_before: Sequence[int],
    visual: Tensor,
    ids_after: Sequence[Sequence[Sequence[int]]],
    max_new_tokens: int,
    drawn_by: torch.Generator | None = None,
) -> list[list[Answered]]:
    """The ids before the picture, the visual tokens (B, m, D), and for each picture its questions as the ids after it.

    Every question sees the picture and itself, so this is the same as asking one at a time (a test compares it with
    `generate`). Each step writes one token of every answer: the likeliest, or one drawn at temperature 1.
    """
    first = _pack(model, ids_before, visual, ids_after)
    hidden, cache = _read(model, first.embeds, block_mask(first.segments), first.positions, DynamicCache())
    at = first.ends  # (B, Q): where the token before each answer's next one stands in `hidden`
    segments, positions = first.segments, first.positions.gather(1, at)  # (B, S), (B, Q)

    stop = model.generation_config.eos_token_id
    answers = [[Answered() for _ in questions] for questions in ids_after]
    own = torch.arange(1, at.shape[1] + 1, device=at.device).expand(len(at), -1)  # (B, Q): the segment of each question
    alive = first.asked
    for _ in range(max_new_tokens):
        states = hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))  # (B, Q, D)
        probability = model.get_output_embeddings()(states).float().softmax(dim=-1)  # (B, Q, V)
        chosen = probability.argmax(dim=-1) if drawn_by is None else _drawn(probability, drawn_by)  # (B, Q)
        _write_down(answers, alive, chosen, probability, stop)
        alive = alive & (chosen != stop)
        if not alive.any():
            break
        positions = positions + 1
        written = torch.where(alive, own, PADDING)  # (B, Q)
        segments = torch.cat([segments, written], dim=1)  # (B, S + Q)
        mask = (segments[:, None] == PREFIX) | (segments[:, None] == own[..., None])  # (B, Q, S + Q)
        mask[..., -own.shape[1] :] &= torch.eye(own.shape[1], dtype=torch.bool, device=mask.device)
        embeds = model.get_input_embeddings()(chosen)  # (B, Q, D)
        hidden, cache = _read(model, embeds, mask[:, None], positions, cache)
        at = own - 1
    return answers


@dataclass(frozen=True)
class _Packed:
    """Pictures with their questions behind them: `embeds` (B, S, D), `segments` and `positions` (B, S), else (B, Q)."""

    embeds: Tensor
    segments: Tensor
    positions: Tensor
    ends: Tensor
    asked: Tensor


def _pack(
    model: MvlmForConditionalGeneration,
    ids_before: Sequence[int],
    visual: Tensor,
    ids_after: Sequence[Sequence[Sequence[int]]],
) -> _Packed:
    device, embed = visual.device, model.get_input_embeddings()
    prefix = len(ids_before) + visual.shape[1]
    length = max(sum(map(len, questions)) for questions in ids_after)
    most = max(map(len, ids_after))
    ids, segments, positions, ends, asked = [], [], [], [], []
    for questions in ids_after:
        gap = length - sum(map(len, questions))
        ids.append([i for q in questions for i in q] + [0] * gap)
        segments.append([PREFIX] * prefix + [n for n, q in enumerate(questions, 1) for _ in q] + [PADDING] * gap)
        positions.append([*range(prefix), *(prefix + i for q in questions for i in range(len(q))), *[0] * gap])
        lengths = torch.tensor([len(q) for q in questions])
        ends.append((prefix + lengths.cumsum(0) - 1).tolist() + [0] * (most - len(questions)))
        asked.append([n < len(questions) for n in range(most)])
    before = embed(torch.tensor([ids_before], device=device)).expand(len(visual), -1, -1)  # (B, ·, D)
    after = embed(torch.tensor(ids, device=device))  # (B, ·, D)
    packed = (torch.tensor(x, device=device) for x in (segments, positions, ends, asked))
    return _Packed(torch.cat([before, visual.to(after.dtype), after], dim=1), *packed)


def _read(
    model: MvlmForConditionalGeneration, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Cache | None
) -> tuple[Tensor, Cache | None]:
    """Last hidden states, without the head: it is wanted at a few positions only."""
    output = model.language_model.base_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True, **cache_argument(cache)
    )
    return output.last_hidden_state, cache_of(output)


def _drawn(probability: Tensor, by: torch.Generator) -> Tensor:
    """One token of each distribution, drawn on the CPU, so that every device draws alike: (B, Q, V) -> (B, Q)."""
    drawn = torch.multinomial(probability.flatten(0, 1).cpu(), 1, generator=by)  # (BQ, 1)
    return drawn.view(probability.shape[:2]).to(probability.device)


def _write_down(answers: list[list[Answered]], alive: Tensor, chosen: Tensor, probability: Tensor, stop: int) -> None:
    tokens, likely = chosen.tolist(), probability.gather(-1, chosen[..., None])[..., 0].tolist()  # (B, Q)
    best, second = probability.topk(2).values.unbind(-1)  # (B, Q)
    margins = (best - second).tolist()
    for picture, question in alive.nonzero().tolist():
        answer = answers[picture][question]
        answer.confidence *= likely[picture][question]
        if answer.margin is None:
            answer.margin = margins[picture][question]
        if tokens[picture][question] != stop:
            answer.token_ids.append(tokens[picture][question])
