"""What the named precisions keep of a real language model: divergence, first choice, nats and MiB, row by row.

`python -m benchmarks.decode.real FOLDER` reads a model that `benchmarks.real_weights --mixed` saved, calibrates with
this repository's own pages, and scores on `text.txt`, which is none of them. Torch computes with the numbers and the
rounded activations that the files hold, which verification holds against onnxruntime to the last digits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.machine import keep
from export.bundle.fidelity import Fidelity
from export.bundle.reference import as_written
from export.graphs.grids import Numbers
from export.graphs.quantize import form
from export.graphs.recipe import HEAD, OTHERS, Recipe
from export.graphs.targets import target
from export.rounding.budget import cheapest_loss
from export.rounding.calibrate import calibrate
from export.rounding.layers import every_layer
from export.rounding.sensitivity import losses

HERE = Path(__file__).parent
PAGES = ("docs/training.md", "docs/data.md", "docs/server.md", "docs/runtime.md")
_PIECE, _CALIBRATED, _MEASURED = 256, 2048, 4
# What a precision was before it was calibrated, for comparison.
OLD = {
    "int4 without zero points, head in 4 bits": {OTHERS: "4b32"},
    "int4-128, as it was": {OTHERS: "4b128"},
    "int8, one scale for a step everywhere": {OTHERS: "dynamic8", HEAD: "8b32"},
}


def pieces(text: str, tokenizer: Any, most: int) -> list[Tensor]:
    """A text in pieces of ids (1, S), each behind the token that begins a text."""
    ids = tokenizer(text, add_special_tokens=False).input_ids[:most]
    begin, step = tokenizer.bos_token_id, _PIECE - 1
    return [torch.tensor([[begin, *ids[at : at + step]]]) for at in range(0, len(ids), step)]


class Scorer:
    """A model, and what it says of the text as it was trained."""

    @torch.no_grad()
    def __init__(self, model: Any, texts: Sequence[Tensor]) -> None:
        self.model, self.texts = model, texts
        self.wanted = [model(ids).logits[0, :-1] for ids in texts]

    @torch.no_grad()
    def facts(self, recipe: Recipe, numbers: Mapping[str, Numbers]) -> dict[str, float]:
        """Means over all positions, and the size of decoder and head; one step reads a piece."""
        seen, counts = Fidelity(), []
        with as_written(self.model, recipe, numbers, one_by_one=False):
            for ids, wanted in zip(self.texts, self.wanted, strict=True):
                seen.see(wanted, self.model(ids).logits[0, :-1], ids[0, 1:])
                counts.append(len(wanted))
        share = torch.tensor(counts, dtype=torch.float64) / sum(counts)
        means = {
            name: float(share @ torch.tensor(getattr(seen, name), dtype=torch.float64))
            for name in ("kl", "top1", "nats")
        }
        return means | {"mib": sum(layer.size * _bits(recipe, layer) for layer in every_layer(self.model)) / 2**23}


def _bits(recipe: Recipe, layer: Any) -> float:
    grid = recipe.of(layer.name).grid_of(layer.shape[1])
    return grid.bits_a_weight if grid else 8.0


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--threads", type=int, default=1, show_default=True)
def main(folder: Path, threads: int) -> None:
    """Score every precision, print a table, and keep the figures."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scorer = Scorer(model, pieces((HERE / "text.txt").read_text(), tokenizer, 10_000))
    root = HERE.parents[1]
    apart = _CALIBRATED // len(PAGES)
    table = model.get_input_embeddings()
    rows = [table(ids).detach() for page in PAGES for ids in pieces((root / page).read_text(), tokenizer, apart)]
    figures: dict[str, Any] = {}

    def add(name: str, recipe: Recipe) -> None:
        figures[name] = facts = scorer.facts(recipe, recipe.numbers)
        click.echo(f"{name:<45}" + "  ".join(f"{key} {value:.4g}" for key, value in facts.items()))

    for name, words in OLD.items():
        add(name, Recipe(words))
    made_for = target("ort-cpu")
    forms = sorted({word for choice in made_for.choices.values() for word in choice.forms})
    started = time.process_time()
    measured = losses(model, [(row, 0) for row in rows[:: len(rows) // _MEASURED]], forms, lambda steps: None)
    seconds = {"losses": time.process_time() - started}
    sizes = {layer.name: layer.size for layer in every_layer(model)[:-1]}
    for name, choice in made_for.choices.items():
        plain = made_for.words(name)
        add(f"{name}, to the nearest", Recipe(plain))
        recipe = Recipe(dict(plain) | cheapest_loss(measured, sizes, choice))
        started = time.process_time()
        numbers = calibrate(model, rows, recipe.words, lambda steps: None) if form(plain[OTHERS]).grid_of(0) else {}
        seconds[name] = time.process_time() - started
        add(name, replace(recipe, numbers=numbers))
    tokens = {"scored": sum(len(wanted) for wanted in scorer.wanted), "calibrated": sum(row.shape[1] for row in rows)}
    click.echo(keep(
        "real_weights", "python -m benchmarks.decode.real FOLDER", precisions=figures, tokens=tokens,
        cpu_seconds=seconds, model="SmolLM2-135M-Instruct, channels shuffled (benchmarks/real_weights.py)",
    ))  # fmt: skip


if __name__ == "__main__":
    main()
