"""How near a decoder of few bits is to its model on text: torch computes with the numbers that the files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.bundle.fidelity import Fidelity
from export.bundle.reference import as_written
from export.graphs.grids import Numbers
from export.graphs.recipe import Recipe
from export.rounding.layers import every_layer

HERE = Path(__file__).parent
# What was looked at while forms were chosen, and what was not.
TEXTS = {"seen": HERE / "text.txt", "kept_back": HERE / "text_kept_back.txt"}
_PIECE = 256
# A row's reference answer, for what rows differ by.
ANSWER = 8
_FACTS = ("kl", "top1", "nats")


def pieces(text: str, tokenizer: Any, most: int = 10_000) -> list[Tensor]:
    """A text in pieces of ids (1, S), each behind the token that begins a text."""
    ids = tokenizer(text, add_special_tokens=False).input_ids[:most]
    begin, step = tokenizer.bos_token_id, _PIECE - 1
    return [torch.tensor([[begin, *ids[at : at + step]]]) for at in range(0, len(ids), step)]


def texts_of(tokenizer: Any) -> dict[str, list[Tensor]]:
    """Both texts in pieces, by their names."""
    return {name: pieces(file.read_text(), tokenizer) for name, file in TEXTS.items()}


class Scorer:
    """A model, and what it says of texts in pieces, by their names, as it was trained."""

    @torch.no_grad()
    def __init__(self, model: Any, texts: Mapping[str, Sequence[Tensor]]) -> None:
        self.model, self.texts = model, texts
        self.wanted = {name: [model(ids).logits[0, :-1] for ids in read] for name, read in self.texts.items()}

    @property
    def tokens(self) -> dict[str, int]:
        """How many choices of a token are scored, by text."""
        return {name: sum(len(rows) for rows in wanted) for name, wanted in self.wanted.items()}

    @torch.no_grad()
    def facts(self, recipe: Recipe, numbers: Mapping[str, Numbers]) -> dict[str, Any]:
        """Means over all positions and by text, and the size of decoder and head; one step reads a piece."""
        with as_written(self.model, recipe, numbers, one_by_one=False):
            found = self.scored(lambda ids: self.model(ids).logits[0])
        return found | {"mib": sum(layer.size * _bits(recipe, layer) for layer in every_layer(self.model)) / 2**23}

    def scored(self, logits_of: Any) -> dict[str, Any]:
        """What `logits_of` makes of every piece, ids (1, S) -> logits (S, V), against the model's own."""
        means, counts, rows = {}, self.tokens, []
        for name, read in self.texts.items():
            seen, lengths = Fidelity(), []
            for ids, wanted in zip(read, self.wanted[name], strict=True):
                found, given = logits_of(ids)[:-1], ids[0, 1:]
                for part in zip(*(x.split(ANSWER) for x in (wanted, found, given)), strict=True):
                    seen.see(*part)
                    lengths.append(len(part[0]))
            means[name] = _weighed(seen, lengths)
            rows += [kl for kl, length in zip(seen.kl, lengths, strict=True) if length == ANSWER]
        both = {fact: sum(means[name][fact] * counts[name] for name in means) / sum(counts.values()) for fact in _FACTS}
        return both | {"by_text": means, "kl_of_rows": {"tokens": ANSWER, "spread": _spread(rows)}}


def limit(facts: Mapping[str, Any], rows: int = 24) -> float:
    """The divergence that verification may allow a precision, from what it was measured to cost a real model.

    Twice the upper end of the 95 % interval of so many rows of that model, as `mvlm verify` takes them: once for the
    rows, which differ, and once more for models that lose more.
    """
    mean: float = facts["kl"]
    spread: float = facts["kl_of_rows"]["spread"]
    return 2 * (mean + 1.96 * spread / rows**0.5)


def _spread(values: Sequence[float]) -> float | None:
    """The standard deviation of rows, where there are several."""
    return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else None


def _weighed(seen: Fidelity, counts: Sequence[int]) -> dict[str, float]:
    share = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    return {name: float(share @ torch.tensor(getattr(seen, name), dtype=torch.float64)) for name in _FACTS}


def _bits(recipe: Recipe, layer: Any) -> float:
    grid = recipe.of(layer.name).grid_of(layer.shape[1])
    return grid.bits_a_weight if grid else 8.0
