"""How likely each of some given answers is: one prefill, and a step more only where answers begin alike.

Letters: V vocabulary.

The answers form a tree of tokens. The prompt's logits score every first token; a deeper node costs one step, so that
`yes` and `no` cost none. An answer that another one goes on from (`4` and `47`) must end there, so its score holds the
probability of a stop token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .conversation import Reads
from .sampling import log_softmax

Array = NDArray[np.float32]
Branches = dict[int, list[tuple[int, tuple[int, ...]]]]


def score_choices(
    conversation: Reads, logits: Array, spellings: Sequence[Sequence[tuple[int, ...]]], stop_ids: frozenset[int]
) -> Array:
    """The log-probability of each choice, given by the ids of all its spellings, after a prompt's logits (V,)."""
    flat = [(number, ids) for number, ways in enumerate(spellings) for ids in dict.fromkeys(ways)]
    totals = np.full(len(spellings), -np.inf)

    def add(number: int, score: float) -> None:
        totals[number] = np.logaddexp(totals[number], score)

    _walk(conversation, log_softmax(logits), flat, 0.0, sorted(stop_ids), add)
    return totals.astype(np.float32)


def _walk(
    conversation: Reads, scores: Array, rest: Sequence[tuple[int, tuple[int, ...]]], so_far: float,
    stop_ids: Sequence[int], add: Callable[[int, float], None],
) -> None:  # fmt: skip
    """Score what is left of each choice after a node whose next token has the log-probabilities `scores` (V,)."""
    branches: Branches = {}
    for number, ids in rest:
        if ids:
            branches.setdefault(ids[0], []).append((number, ids[1:]))
        else:  # another choice goes on from here, so this one must end
            add(number, so_far + float(np.logaddexp.reduce(scores[stop_ids])))
    here = conversation.used
    for token, below in branches.items():
        reached = so_far + float(scores[token])
        if len(below) == 1 and not below[0][1]:
            add(below[0][0], reached)
            continue
        deeper = log_softmax(conversation.follow(token))
        _walk(conversation, deeper, below, reached, stop_ids, add)
        conversation.rewind(here)
