"""All questions of a picture, answered behind one copy of it: what packing is to training, for labels.

Letters: B pictures, Q questions of the picture that has most, m visual tokens, S positions written so far, D width,
V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.train.packing import PADDING, PREFIX, block_mask

from .packed_reading import Likelihood, Packed, Questions, likelihoods, pack, read


@dataclass
class Answered:
    """One answer: its ids without the stop token, and the nats of all that was written, the stop token among it.

    `margin` is by how much the likeliest first token was likelier than the next likely one; `ended` whether the stop
    token was written; `reference` what the model gave to the reference answer, where there is one.
    """

    token_ids: list[int] = field(default_factory=list)
    nats: float = 0.0
    margin: float | None = None
    ended: bool = False
    reference: Likelihood | None = None

    @property
    def confidence(self) -> float:
        """The probability that the model gave to all of the answer."""
        return exp(-self.nats)


@torch.inference_mode()
def answer_together(
    model: MvlmForConditionalGeneration,
    ids_before: Sequence[int],
    visual: Tensor,
    ids_after: Questions,
    max_new_tokens: int,
    drawn_by: torch.Generator | None = None,
    references: Questions | None = None,
) -> list[list[Answered]]:
    """The ids before the picture, the visual tokens (B, m, D), and for each picture its questions as the ids after it.

    Every question sees the picture and itself, so this is the same as asking one at a time (a test compares it with
    `generate`). Each step writes one token of every answer: the likeliest, or one drawn at temperature 1.
    `references` are answers to read in the same pass, each with its stop token unless it was cut off before, or empty
    for none. A question whose greedy answer that shows to be its reference is not asked again; behind the others the
    references are hidden.
    """
    references = references or [[() for _ in questions] for questions in ids_after]
    packed = pack(model, ids_before, visual, ids_after, references)
    hidden, cache = read(model, packed.embeds, block_mask(packed.segments), packed.positions, DynamicCache())
    told = likelihoods(model, hidden, packed, references)
    answers = [[Answered(reference=of_question) for of_question in of_picture] for of_picture in told]
    alive = packed.asked.clone()  # (B, Q)
    if drawn_by is None:
        for picture, question in packed.asked.nonzero().tolist():
            reference = references[picture][question]
            known = _take_reference(answers[picture][question], reference, max_new_tokens, stop_ids(model))
            alive[picture, question] = not known
    _write(model, answers, alive, packed, hidden, cache, max_new_tokens, drawn_by)
    return answers


def _take_reference(answer: Answered, reference: Sequence[int], max_new_tokens: int, stops: Sequence[int]) -> bool:
    """Whether the reference is what would be written; if so it is written down. One that was cut off before its stop
    token, as the finest scale's own answer may be, is known only where this one is cut off there too."""
    told = answer.reference
    if told is None or not told.greedy or told.tokens > max_new_tokens:
        return False
    ended = reference[-1] in stops
    if not ended and told.tokens < max_new_tokens:
        return False
    answer.token_ids = list(reference[:-1] if ended else reference)
    answer.nats, answer.margin, answer.ended = told.nats, told.margin, ended
    return True


def _write(
    model: MvlmForConditionalGeneration, answers: list[list[Answered]], alive: Tensor, packed: Packed, hidden: Tensor,
    cache: Cache | None, max_new_tokens: int, drawn_by: torch.Generator | None,
) -> None:  # fmt: skip
    """Write the answers that `alive` (B, Q) says, behind what was read: `hidden` (B, S, D) and its cache."""
    open_ones = alive.any(dim=1).nonzero()[:, 0]  # pictures with a question that is still to be answered
    if not len(open_ones):
        return
    if cache is not None and len(open_ones) < len(alive):
        cache.batch_select_indices(open_ones)
    answers, alive, hidden = [answers[n] for n in open_ones.tolist()], alive[open_ones], hidden[open_ones]
    at = packed.ends[open_ones]  # (B, Q): where the token before each answer's next one stands in `hidden`
    segments = packed.segments.masked_fill(packed.taught, PADDING)[open_ones]  # (B, S)
    positions = packed.positions[open_ones].gather(1, at)  # (B, Q)
    stops = torch.tensor(stop_ids(model), device=at.device)
    own = torch.arange(1, at.shape[1] + 1, device=at.device).expand(len(at), -1)  # (B, Q): the segment of each question
    for step in range(1, max_new_tokens + 1):
        states = hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))  # (B, Q, D)
        likely = model.get_output_embeddings()(states).float().log_softmax(dim=-1)  # (B, Q, V)
        chosen = likely.argmax(dim=-1) if drawn_by is None else _drawn(likely.exp(), drawn_by)  # (B, Q)
        ends = torch.isin(chosen, stops)
        _write_down(answers, alive, chosen, likely, ends)
        alive = alive & ~ends
        if step == max_new_tokens or not alive.any():
            break
        positions = positions + 1
        segments = torch.cat([segments, torch.where(alive, own, PADDING)], dim=1)  # (B, S + Q)
        mask = (segments[:, None] == PREFIX) | (segments[:, None] == own[..., None])  # (B, Q, S + Q)
        mask[..., -own.shape[1] :] &= torch.eye(own.shape[1], dtype=torch.bool, device=mask.device)
        embeds = model.get_input_embeddings()(chosen)  # (B, Q, D)
        hidden, cache = read(model, embeds, mask[:, None], positions, cache)
        at = own - 1


def stop_ids(model: MvlmForConditionalGeneration) -> list[int]:
    stop = model.generation_config.eos_token_id
    return list(stop) if isinstance(stop, list | tuple) else [stop]


def _drawn(probability: Tensor, by: torch.Generator) -> Tensor:
    """One token of each distribution, drawn on the CPU, so that every device draws alike: (B, Q, V) -> (B, Q)."""
    drawn = torch.multinomial(probability.flatten(0, 1).cpu(), 1, generator=by)  # (BQ, 1)
    return drawn.view(probability.shape[:2]).to(probability.device)


def _write_down(answers: list[list[Answered]], alive: Tensor, chosen: Tensor, likely: Tensor, ends: Tensor) -> None:
    tokens, told = chosen.tolist(), likely.gather(-1, chosen[..., None])[..., 0].tolist()  # (B, Q)
    best, second = likely.topk(2).values.exp().unbind(-1)  # (B, Q)
    margins, ended = (best - second).tolist(), ends.tolist()
    for picture, question in alive.nonzero().tolist():
        answer = answers[picture][question]
        answer.nats -= told[picture][question]
        if answer.margin is None:
            answer.margin = margins[picture][question]
        answer.ended = ended[picture][question]
        if not answer.ended:
            answer.token_ids.append(tokens[picture][question])
