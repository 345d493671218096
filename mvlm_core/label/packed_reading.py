"""All questions of a picture read behind one copy of it, each with its reference answer: what packing is to training.

Letters: B pictures, Q questions of the picture that has most, m visual tokens, S positions, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from mvlm_core.modeling.kv_cache import cache_argument, cache_of
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.train.packing import PADDING, PREFIX

# The ids of each question of each picture, and those of what it is to be answered by.
Questions = Sequence[Sequence[Sequence[int]]]
# So many positions go through the head at once: with a large vocabulary, logits are most of the memory.
_POSITIONS = 1024


@dataclass(frozen=True)
class Likelihood:
    """What the model gives to the tokens of a reference answer, its end token among them, when it reads them.

    `greedy`: each of them is the likeliest behind those before it, so that the greedy answer is the reference.
    """

    nats: float
    tokens: int
    greedy: bool
    margin: float

    @property
    def mean_nats(self) -> float:
        return self.nats / self.tokens

    @property
    def probability(self) -> float:
        """Of the whole answer: the product over its tokens."""
        return math.exp(-self.nats)


@dataclass(frozen=True)
class Packed:
    """Pictures with their questions behind them, and behind each question all of its reference but the last token.

    `embeds` (B, S, D); `segments` and `positions` (B, S), and `taught` where a reference stands; `ends` (B, Q): the
    last position of each question, and `asked` where there is one.
    """

    embeds: Tensor
    segments: Tensor
    positions: Tensor
    taught: Tensor
    ends: Tensor
    asked: Tensor


def pack(
    model: MvlmForConditionalGeneration, ids_before: Sequence[int], visual: Tensor, ids_after: Questions,
    references: Questions,
) -> Packed:  # fmt: skip
    """The ids before the picture, visual tokens (B, m, D), the ids of the questions, and those of their references."""
    device, embed = visual.device, model.get_input_embeddings()
    prefix = len(ids_before) + visual.shape[1]
    rows = [_Row.of(*of_picture, prefix) for of_picture in zip(ids_after, references, strict=True)]
    length, most = max(len(row.ids) for row in rows), max(len(row.ends) for row in rows)

    def padded(name: str, head: list[int], padding: int, to: int) -> Tensor:
        lists = [getattr(row, name) for row in rows]
        return torch.tensor([head + held + [padding] * (to - len(held)) for held in lists], device=device)

    before = embed(torch.tensor([ids_before], device=device)).expand(len(visual), -1, -1)  # (B, ·, D)
    after = embed(padded("ids", [], 0, length))  # (B, ·, D)
    return Packed(
        torch.cat([before, visual.to(after.dtype), after], dim=1),
        padded("segments", [PREFIX] * prefix, PADDING, length),
        padded("positions", list(range(prefix)), 0, length),
        padded("taught", [0] * prefix, 0, length).bool(),
        padded("ends", [], 0, most),
        torch.tensor([[n < len(row.ends) for n in range(most)] for row in rows], device=device),
    )


@dataclass
class _Row:
    """What stands behind one picture; `segments` count its questions from 1, `ends` where each ends."""

    ids: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    taught: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, questions: Sequence[Sequence[int]], references: Sequence[Sequence[int]], prefix: int) -> _Row:
        row = cls()
        for segment, (question, reference) in enumerate(zip(questions, references, strict=True), 1):
            fed = [*question, *reference[:-1]]
            row.ends.append(prefix + len(row.ids) + len(question) - 1)
            row.ids += fed
            row.segments += [segment] * len(fed)
            row.positions += range(prefix, prefix + len(fed))
            row.taught += [0] * len(question) + [1] * (len(fed) - len(question))
        return row


def read(
    model: MvlmForConditionalGeneration, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Cache | None
) -> tuple[Tensor, Cache | None]:
    """Last hidden states, without the head: it is wanted at a few positions only."""
    output = model.language_model.base_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True, **cache_argument(cache)
    )
    return output.last_hidden_state, cache_of(output)


def likelihoods(
    model: MvlmForConditionalGeneration, hidden: Tensor, packed: Packed, references: Questions
) -> list[list[Likelihood | None]]:
    """What hidden states (B, S, D) of `packed` give to the references; None for a question that has none."""
    places = [
        (picture, int(packed.ends[picture, question]) + n, token)
        for picture, of_picture in enumerate(references)
        for question, reference in enumerate(of_picture)
        for n, token in enumerate(reference)
    ]
    tokens = [
        token
        for start in range(0, len(places), _POSITIONS)
        for token in _of_tokens(model, hidden, places[start : start + _POSITIONS])
    ]
    rest = iter(tokens)
    return [[_likelihood([next(rest) for _ in reference]) for reference in of_picture] for of_picture in references]


def _of_tokens(
    model: MvlmForConditionalGeneration, hidden: Tensor, places: Sequence[tuple[int, int, int]]
) -> list[tuple[float, bool, float]]:
    """Of each token (picture, position before it, id): nats, whether it is the likeliest, and the lead of the first."""
    picture, position, token = torch.tensor(places, device=hidden.device).unbind(1)
    told = model.get_output_embeddings()(hidden[picture, position]).float().log_softmax(dim=-1)  # (places, V)
    best = told.topk(2)
    nats, leads = -told.gather(1, token[:, None])[:, 0], (best.values[:, 0].exp() - best.values[:, 1].exp())
    greedy = best.indices[:, 0] == token
    return list(zip(nats.tolist(), greedy.tolist(), leads.tolist(), strict=True))


def _likelihood(tokens: Sequence[tuple[float, bool, float]]) -> Likelihood | None:
    if not tokens:
        return None
    return Likelihood(sum(nats for nats, _, _ in tokens), len(tokens), all(best for _, best, _ in tokens), tokens[0][2])
