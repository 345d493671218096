"""Calibrated rounding: against the slow obvious way, and what it promises about a layer's outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from export.bundle.reference import _far
from export.graphs.grids import Grid, Numbers, nearest, side_by_side
from export.graphs.quantize import form
from export.graphs.recipe import Recipe
from export.graphs.targets import Choice
from export.rounding import gptq as rounding
from export.rounding.budget import cheapest_loss, cost
from export.rounding.calibrate import calibrate, calibrated_layers, clipped, other_weights
from export.rounding.gptq import FARTHEST, gptq
from export.rounding.kept import KeptNumbers
from export.rounding.layers import every_layer
from export.rounding.sensitivity import losses
from tests.support.tiny import tiny_model

GRIDS = [Grid(4, 32), Grid(4, 32, zeros=True), Grid(4, 32, zeros=True, half=True), Grid(4, 64, zeros=True), Grid(8, 32)]


def inputs_and_weight(k: int = 96):
    generator = torch.Generator().manual_seed(0)
    mixing = 0.3 * torch.randn(k, k, generator=generator) + torch.eye(k)
    return torch.randn(400, k, generator=generator) @ mixing, torch.randn(24, k, generator=generator)


def lost(x, weight, numbers: Numbers) -> float:
    return float((x @ (numbers.restored() - weight).T).norm() / (x @ weight.T).norm())


def slow_gptq(weight, squares, grid):
    """One input after another, the whole inverse anew each time: the paper's equations 2 and 3, scales as `fit` has
    them."""
    from export.graphs.grids import fit

    left, k = weight.clone().double(), weight.shape[1]
    h = squares.double() + 0.1 * squares.double().diagonal().mean() * torch.eye(k, dtype=torch.float64)
    root = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    values, scales, zeros = [], [], []
    for i in range(k):
        if i % grid.block == 0:
            block = slice(i, i + grid.block)
            scale, zero = fit(left[:, block].float(), grid, (root.diagonal()[block] ** -2).float())
            scales.append(scale)
            zeros.append(zero)
        numbers = grid.numbers(left[:, i : i + 1].float(), scale, zero)
        values.append(numbers)
        inverse = torch.linalg.inv(h[i:, i:])
        error = left[:, i : i + 1] - ((numbers - zero) * scale).double()
        left[:, i:] -= error / inverse[0, 0] * inverse[0]
    return torch.cat(values, 1), torch.cat(scales, 1), torch.cat(zeros, 1)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gptq_is_the_slow_way(grid):
    x, weight = inputs_and_weight()
    numbers = gptq(weight, x.T @ x, grid)
    values, scales, zeros = slow_gptq(weight, x.T @ x, grid)
    assert float((numbers.values == values).float().mean()) > 0.98  # what lies between two numbers may go either way
    assert torch.equal(numbers.zero.float(), zeros)
    np.testing.assert_allclose(numbers.scale, scales, rtol=1e-2)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_outputs_stay_nearer_than_by_rounding_to_the_nearest(grid):
    x, weight = inputs_and_weight()
    assert lost(x, weight, gptq(weight, x.T @ x, grid)) < 0.75 * lost(x, weight, nearest(weight, grid))


def test_numbers_are_kept_as_they_are():
    _, weight = inputs_and_weight(95)
    kept = KeptNumbers()
    for grid in (*GRIDS, Grid(8, 64, half=True)):
        kept.keep(str(grid), nearest(weight, grid))
    assert len(kept) == len(list(kept)) == len(GRIDS) + 1
    for grid in GRIDS:
        wanted, found = nearest(weight, grid), kept[str(grid)]
        assert found.grid == grid
        assert all(torch.equal(getattr(wanted, name), getattr(found, name)) for name in ("values", "scale", "zero"))


def test_an_input_that_is_always_nought_is_rounded_alone():
    x, weight = inputs_and_weight()
    x[:, 5] = 0
    numbers = gptq(weight, x.T @ x, Grid(4, 32, zeros=True))
    assert torch.isfinite(numbers.restored()).all()
    assert float((numbers.restored()[:, 5] - weight[:, 5]).abs().max()) < 0.3


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_searching_for_scales_loses_less(grid):
    _, weight = inputs_and_weight()
    importance = torch.rand(96) + 0.1
    error = [
        float(((numbers.restored() - weight).square() * importance).sum())
        for numbers in (nearest(weight, grid, importance), nearest(weight, grid))
    ]
    assert error[0] <= error[1]
    if grid.bits == 4:
        assert error[0] < 0.98 * error[1]


def test_a_position_far_out_counts_as_a_few():
    x = torch.ones(9, 4)
    x[3] *= 1000
    assert torch.equal(clipped(x)[:3], x[:3])
    np.testing.assert_allclose(clipped(x)[3], 8 * np.ones(4), rtol=1e-5)


def test_rows_and_layers_side_by_side():
    _, weight = inputs_and_weight()
    numbers = nearest(weight, Grid(4, 64, zeros=True))  # the last block is cut short
    assert torch.equal(numbers.rows(3, 7).restored(), numbers.restored()[3:7])
    both = side_by_side([numbers.rows(0, 10), numbers.rows(10, 24)])
    assert torch.equal(both.restored(), numbers.restored())


def language_rows(count: int = 3, language: str = "llama"):
    model = tiny_model(language=language).language_model
    generator = torch.Generator().manual_seed(1)
    return model, [torch.randn(1, 20 + i, 32, generator=generator) for i in range(count)]


def restored(model, words, numbers):
    """Every module's weight as `words` and numbers have it."""
    weights: dict[nn.Module, torch.Tensor] = {}
    for layer in every_layer(model):
        made = numbers[layer.name].restored() if layer.name in numbers else Recipe(words).of(layer.name).rounded(
            layer.weight
        )  # fmt: skip
        weights |= dict(zip(layer.modules, made.split([m.weight.shape[0] for m in layer.modules]), strict=True))
    return weights


@torch.no_grad()
def divergence(model, rows, weights) -> float:
    total = 0.0
    for row in rows:
        wanted = model(inputs_embeds=row).logits.log_softmax(-1)
        with other_weights(weights):
            found = model(inputs_embeds=row).logits.log_softmax(-1)
        total += float((wanted.exp() * (wanted - found)).sum(-1).mean())
    return total / len(rows)


@pytest.mark.parametrize("language", ["llama", "qwen3"])
def test_a_calibrated_model_is_nearer_and_stays_as_it_was(language):
    model, rows = language_rows(12, language)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    words, steps = {"*": "4b32z", "lm_head": "8b32"}, []
    numbers = calibrate(model, rows, words, steps.append)
    assert len(steps) == 2
    assert set(numbers) == calibrated_layers(model, words) == {layer.name for layer in every_layer(model)[:-1]}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    plain = divergence(model, rows, restored(model, words, {}))
    assert divergence(model, rows, restored(model, words, numbers)) < 0.92 * plain


def test_each_layer_is_fitted_to_what_the_rounded_ones_before_it_put_out():
    """Against the slow way: the whole model asked anew before each layer, with what was rounded until then."""
    model, rows = language_rows(6)
    words = {"*": "4b32z", "o_proj": "8b32", "layers.1.self_attn.qkv_proj": "dynamic8", "lm_head": "8b32"}
    numbers, rounded = calibrate(model, rows, words, lambda steps: None), {}
    for layer in every_layer(model)[:-1]:
        seen: list[torch.Tensor] = []
        hook = layer.modules[0].register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0][0]))
        with torch.no_grad(), other_weights(rounded):
            for row in rows:
                model(inputs_embeds=row)
        hook.remove()
        made = Recipe(words).of(layer.name).rounded(layer.weight)
        if layer.name in numbers:
            squares = sum((x.T @ x for x in map(clipped, seen)), torch.tensor(0.0))
            wanted = gptq(layer.weight, squares, Grid(4, 32, zeros=True))
            assert float((wanted.values == numbers[layer.name].values).float().mean()) > 0.99
            made = numbers[layer.name].restored()
        assert (layer.name in numbers) == (Recipe(words).word(layer.name) == "4b32z")
        parts = made.split([module.weight.shape[0] for module in layer.modules])
        rounded |= dict(zip(layer.modules, parts, strict=True))


def test_what_has_eight_bits_or_one_scale_is_not_calibrated():
    model, rows = language_rows()
    words = {"*": "dynamic8", "o_proj": "8b32", "layers.1.mlp.up_proj": "stored4", "lm_head": "4b32"}
    assert calibrated_layers(model, words) == {"layers.1.mlp.up_proj"}
    assert set(calibrate(model, rows, words, lambda steps: None)) == {"layers.1.mlp.up_proj"}


def test_losses_foretell_what_a_layer_costs():
    """Against the slow way: one layer rounded, and the whole model asked again."""
    model, rows = language_rows(24)
    found = losses(model, [(row, 0) for row in rows], ["4b32", "8b32"], lambda steps: None)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    layers = [layer for layer in every_layer(model)[:-1] if "qkv" not in layer.name]
    slow = [divergence(model, rows, {layer.modules[0]: form("4b32").rounded(layer.weight)}) for layer in layers]
    foretold = [found[layer.name]["4b32"] for layer in layers]
    assert float(np.corrcoef(np.log(slow), np.log(foretold))[0, 1]) > 0.8
    assert 0.3 < sum(foretold) / sum(slow) < 3
    assert all(by_form["8b32"] < by_form["4b32"] for by_form in found.values())


def test_a_budget_goes_where_it_saves_most():
    found = {
        "a": {"4b128z": 1.0, "8b128": 0.0}, "b": {"4b128z": 0.9, "8b128": 0.1}, "c": {"4b128z": 0.001, "8b128": 0.0},
    }  # fmt: skip
    sizes = {"a": 100, "b": 50, "c": 1000}
    few, many = cost("4b128z", "bits"), cost("8b128", "bits")
    assert (few, many) == (4 + 36 / 128, 8 + 32 / 128)
    for enough, chosen in ((0, ""), (50, "b"), (149, "b"), (150, "ab"), (1150, "abc")):
        mean = few + (many - few) * enough / 1150 + 1e-9
        words = cheapest_loss(found, sizes, Choice(("4b128z", "8b128"), "bits", mean))
        assert {name for name, word in words.items() if word == "8b128"} == set(chosen)
    assert cost("dynamic8", "time") < cost("8b128h", "time") < cost("8b32h", "time")


def test_outputs_that_one_large_input_would_carry_away_are_rounded_by_themselves(monkeypatch):
    """As in real models, where one channel is hundreds of times the others: all others make good what it loses."""
    torch.manual_seed(0)
    weight, x, grid = torch.randn(24, 64), torch.randn(40, 64), Grid(4, 32, zeros=True)
    x[:, 0] = 100
    monkeypatch.setattr(rounding, "DAMPING", 0.01)  # more of it holds back this one by itself, though not several

    def farthest() -> float:
        error = gptq(weight, x.T @ x, grid).restored() - weight
        return float((error.norm(dim=1) / weight.norm(dim=1)).max())

    assert farthest() <= FARTHEST
    monkeypatch.setattr(rounding, "_near", lambda weight, numbers: numbers)
    assert farthest() > 0.5


def test_numbers_of_another_weight_are_far():
    """What verification says of calibrated numbers, which it cannot write once more."""
    x, weight = inputs_and_weight()
    numbers = gptq(weight, x.T @ x, Grid(4, 32, zeros=True))
    assert not _far(weight, numbers)
    assert _far(weight[[1, 0, *range(2, 24)]], numbers)
    weight[3, 7] += 40
    assert _far(weight, numbers)
