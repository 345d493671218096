"""What the named precisions keep of a real language model: divergence, first choice, nats, MiB and CPU time.

`python -m benchmarks.decode.real FOLDER` reads a model that `benchmarks.real_weights --mixed` saved, calibrates with
this repository's own pages, and scores on two texts that are none of them. `--only int4` does one precision; each is
kept as soon as it is measured. Torch computes with the numbers and the rounded activations that the files hold, which
verification holds against onnxruntime to the last digits; times are of the files themselves, in onnxruntime.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.code import code_sha256
from benchmarks.decode.real_speed import speed
from benchmarks.decode.scored import HERE, Scorer, pieces, texts_of
from benchmarks.machine import RESULTS, keep
from export.graphs.grids import Grid, Numbers
from export.graphs.recipe import Recipe
from export.graphs.targets import target
from export.rounding.budget import cheapest_loss
from export.rounding.calibrate import calibrate, calibrated_layers
from export.rounding.layers import every_layer
from export.rounding.sensitivity import Losses, losses

PAGES = ("docs/training.md", "docs/data.md", "docs/server.md", "docs/runtime.md")
_CALIBRATED, _MEASURED = 4096, 4
_NAME = "real_weights"
REAL_MODEL = "SmolLM2-135M-Instruct, channels shuffled (benchmarks/real_weights.py)"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--only", multiple=True, help="A precision; left out: all.")
@click.option("--nearest/--no-nearest", "plain", default=True, help="Also rounded each weight by itself.")
@click.option("--threads", type=int, default=1, show_default=True)
def main(folder: Path, only: tuple[str, ...], plain: bool, threads: int) -> None:
    """Score every precision, print a table, and keep the figures."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = calibrated_rows(model, tokenizer)
    made_for = target("ort-cpu")
    scorer = Scorer(model, texts_of(tokenizer))
    tokens = {"scored": scorer.tokens, "calibrated": sum(row.shape[1] for row in rows)}
    for name in only or made_for.choices:
        words = made_for.words(name)
        if plain:
            _keep(f"{name}, to the nearest", scorer.facts(Recipe(words), {}), tokens)
        measured = _measured(folder, model, rows)
        recipe, seconds = recipe_of(folder, model, rows, name)
        foretold = sum(by_form[recipe.word(layer)] for layer, by_form in measured.items())
        facts = scorer.facts(recipe, recipe.numbers) | {"foretold_kl": foretold, "calibration_cpu_s": seconds}
        _keep(name, facts, tokens)
        _keep(name, facts | speed(model, recipe), tokens)


def recipe_of(folder: Path, model: Any, rows: list[torch.Tensor], name: str) -> tuple[Recipe, float]:
    """A precision of `ort-cpu` calibrated with rows, and the processor seconds that took. What was measured of layers,
    and numbers that the same code found, are kept in a folder."""
    made_for, sizes = target("ort-cpu"), {layer.name: layer.size for layer in every_layer(model)[:-1]}
    measured = _measured(folder, model, rows)
    recipe = Recipe(dict(made_for.words(name)) | cheapest_loss(measured, sizes, made_for.choices[name]))
    if not calibrated_layers(model, recipe.words):
        return recipe, 0.0
    file, asked = folder / f"numbers.{name}.pt", [code_sha256("export.rounding.calibrate"), dict(recipe.words)]
    kept: dict[str, Any] = torch.load(file, weights_only=True) if file.is_file() else {}
    if kept.get("asked") != asked:
        started = time.process_time()
        found = calibrate(model, rows, recipe.words, lambda steps: None)
        layers = {layer: (asdict(n.grid), n.values, n.scale, n.zero) for layer, n in found.items()}
        kept = {"asked": asked, "cpu_s": time.process_time() - started, "layers": layers}
        torch.save(kept, file)
    numbers = {layer: Numbers(Grid(**grid), *tensors) for layer, (grid, *tensors) in kept["layers"].items()}
    return replace(recipe, numbers=numbers), float(kept["cpu_s"])


def calibrated_rows(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    """Embeddings of the pages that are calibrated with, (1, S, D) each."""
    table, root = model.get_input_embeddings(), HERE.parents[1]
    apart = _CALIBRATED // len(PAGES)
    return [table(ids).detach() for page in PAGES for ids in pieces((root / page).read_text(), tokenizer, apart)]


def _measured(folder: Path, model: Any, rows: list[torch.Tensor]) -> Losses:
    """What each form of each layer costs, kept in a folder: one precision after another asks for it."""
    file = folder / "losses.json"
    forms = sorted({word for choice in target("ort-cpu").choices.values() for word in choice.forms})
    found: Losses = json.loads(file.read_text()) if file.is_file() else {}
    if not found or set(next(iter(found.values()))) != set(forms):
        some = [(row, 0) for row in rows[:: max(len(rows) // _MEASURED, 1)]]
        found = losses(model, some, forms, lambda steps: None)
        file.write_text(json.dumps(found))
    return found


def _keep(name: str, facts: dict[str, Any], tokens: dict[str, Any]) -> None:
    """Put a row beside those that are there."""
    file = RESULTS / f"{_NAME}.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}
    shown = "  ".join(f"{key} {value:.4g}" for key, value in facts.items() if isinstance(value, float))
    click.echo(f"{name:<28}{shown}")
    keep(
        _NAME, "python -m benchmarks.decode.real FOLDER", precisions=kept.get("precisions", {}) | {name: facts},
        peers=kept.get("peers", {}), tokens=tokens,
        model=REAL_MODEL,
    )  # fmt: skip


if __name__ == "__main__":
    main()
