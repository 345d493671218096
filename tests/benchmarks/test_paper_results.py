"""From cells to results: statistics, claims, plots, gallery."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import benchmarks.paper.__main__ as paper
from benchmarks.paper.cells import Cell, specialist
from benchmarks.paper.claims import MARGIN, Claim, Found, claims, difference, over_specialists
from benchmarks.paper.compute import family_config, step_flops
from benchmarks.paper.gallery import gathering, relevance, telling, telling_questions
from benchmarks.paper.oracle import needs, oracle_figures, seeds_table
from benchmarks.paper.plots import draw
from benchmarks.paper.results import read_found, results
from benchmarks.paper.stats import Estimate, estimate, t_interval
from benchmarks.paper.train import of_splits
from benchmarks.paper.world import (
    FINEST,
    SCALES,
)
from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.label.sweep import Sweep
from mvlm_core.modeling.connectors import start_pyramid
from mvlm_core.modeling.model import build_connector
from tests.support.paper_cells import TINY, made_up


def test_the_interval_over_seeds_is_students():
    values = np.array([0.3, 0.5, 0.45])
    wanted = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert t_interval(values) == pytest.approx(wanted)
    assert t_interval(values[:1]) is None


def test_an_estimate_takes_the_wider_of_both_intervals():
    rows = np.random.default_rng(0).random(400)
    groups = np.array([f"p{row // 4}" for row in range(400)])
    alike = estimate([rows, rows + 0.001], groups)
    apart = estimate([rows, rows + 0.5], groups)
    assert alike.low == alike.by_picture[0] < alike.by_seed[0]
    assert apart.low == apart.by_seed[0] < apart.by_picture[0]
    assert estimate([rows], groups).by_seed is None


@pytest.mark.parametrize(
    ("expected", "low", "high", "verdict"),
    [
        ("more", 0.01, 0.05, "agrees"), ("more", -0.01, 0.05, "undecided"), ("more", -0.05, -0.01, "differs"),
        ("no less", -MARGIN / 2, 0.09, "agrees"), ("no less", -2 * MARGIN, 0.01, "undecided"),
        ("no less", -2 * MARGIN, -0.01, "differs"), ("the same", -MARGIN / 2, MARGIN / 2, "agrees"),
        ("the same", -MARGIN / 2, 2 * MARGIN, "undecided"), ("the same", 0.01, 2 * MARGIN, "differs"),
    ],
)  # fmt: skip
def test_intervals_decide_a_verdict(expected, low, high, verdict):
    figure = Estimate((low + high) / 2, (low, high), (low, high), 3)
    assert Claim(1, "says", "source", expected, figure).verdict == verdict


def test_differences_are_paired_by_seed_and_row():
    random = np.random.default_rng(0)
    found = Found()
    for seed in (0, 1):
        scores = random.integers(0, 2, (40, 4)).astype(float)
        found.add(made_up("nested", seed, scores))
        found.add(made_up("drawn", seed, scores - 0.25))
    found.add(made_up("drawn", 2, scores))  # a seed that the other lacks is left out
    gap = difference(found.pairs(("pool", "nested"), ("pool", "drawn")), [1, 64])
    assert (gap.value, gap.low, gap.high, gap.seeds) == pytest.approx((0.25, 0.25, 0.25, 2))
    assert difference([], [1]) is None


def test_specialists_are_met_each_at_its_own_scale():
    found = Found()
    scores = np.random.default_rng(0).integers(0, 2, (40, 4)).astype(float)
    found.add(made_up("nested", 0, scores))
    assert over_specialists(found, "pool", SCALES) is None
    for place, m in enumerate(SCALES):
        found.add(made_up(specialist(m), 0, scores[:, [place]] + 0.1 * place, scales=(m,)))
    assert over_specialists(found, "pool", SCALES).value == pytest.approx(-0.15)
    assert over_specialists(found, "pool", (4,)).value == pytest.approx(-0.1)


def test_luck_is_all_that_an_oracle_of_coins_has():
    random = np.random.default_rng(0)
    coins = [made_up("nested", seed, random.integers(0, 2, (4000, 4))) for seed in range(3)]
    told = oracle_figures(coins)
    assert told.score > 0.9
    assert told.fixed_score < 0.53
    assert told.cross_sample_score == pytest.approx(told.mix, abs=0.02)
    assert oracle_figures(coins[:1]).cross_sample_score is None


def test_need_without_luck_stays():
    """Rows of which a quarter needs each scale, in every seed: the oracle has no luck to lose."""
    need = np.arange(400) % 4
    scores = (np.arange(4) >= need[:, None]).astype(float)
    told = oracle_figures([made_up("nested", seed, scores) for seed in range(2)])
    assert told.score == told.cross_sample_score == 1
    assert told.mean_tokens == told.cross_sample_tokens == np.mean(SCALES)
    shares = needs([made_up("nested", 0, scores)])[0]["stable_from"]
    assert shares == pytest.approx([0.25] * 4)
    assert seeds_table([made_up("nested", 0, scores)]).samples.shape == (400, 1, 4)


@pytest.fixture(scope="module")
def told(finished, some_cells, world) -> dict:
    cells = [*some_cells, *(replace(cell, seed=1) for cell in some_cells)]
    for cell in cells[len(some_cells) :]:  # a second seed that answers as the first does
        first = finished / replace(cell, seed=0).key
        (finished / cell.key).mkdir(exist_ok=True)
        for file in first.glob("*.*"):
            (finished / cell.key / file.name).write_bytes(file.read_bytes())
    missing = Cell("drawn", "pool", 0, 2)
    return results([*cells, missing], finished, TINY)


def test_results_say_what_is_there_and_what_is_missing(told, some_cells, finished):
    assert told["missing"] == ["pool-drawn-0"]
    assert len(told["cells"]) == 2 * len(some_cells)
    nested = next(cell for cell in told["cells"] if cell["key"] == "pool-nested-0")
    asked = read_found([c for c in some_cells if c.name == "nested"][:1], finished).of("pool", "nested")[0]
    assert nested["right"]["all"] == pytest.approx(asked.scores.mean(axis=0), abs=1e-4)
    assert told["core_minutes"] > 0
    json.dumps(told, allow_nan=False)


def test_the_summary_is_made_of_the_verdicts(told):
    counts = {verdict: sum(claim["verdict"] == verdict for claim in told["claims"]) for verdict in
              ("agrees", "differs", "undecided")}  # fmt: skip
    for verdict, count in counts.items():
        assert f"{verdict}: {count} of {len(told['claims'])}" in told["summary"]
    assert sum(line.startswith("router: pool") for line in told["summary"]) == len(told["router"]["pool"][0]["at"])
    assert any(line.startswith("cells that are missing") and line.endswith("pool-drawn-0") for line in told["summary"])


def test_the_summary_says_what_training_and_answering_cost(finished, some_cells):
    parts = {"tower": [1.0] * 4, "decoder": [1.0, 1.0, 2.0, 4.0]}
    costs = {"models": [{"family": "pool", "gflops": parts, "ms": parts}]}
    summary = results(some_cells, finished, TINY, costs)["summary"]
    assert "cost: pool, from 64 tokens to 1 FLOPs fall 2.50-fold" in summary[-1]
    cells = {cell.name: cell for cell in some_cells if cell.family == "pool"}
    one = step_flops("pool", cells["nested"].show, TINY.cell_questions)
    each = sum(step_flops("pool", cells[specialist(m)].show, TINY.cell_questions) for m in SCALES)
    assert summary[-2] == f"compute: pool, all specialists together cost {each / one:.2f} times the one model"


def test_no_claim_is_made_of_cells_that_are_not_there():
    assert claims(Found()) == []


def test_the_plots_are_drawn_with_and_without_costs(told, tmp_path):
    costs = {"models": [{"family": "pool", "gflops": {"tower": [1.0] * 4}, "ms": {"tower": [1.0] * 4}}]}
    assert len(draw(told, tmp_path)) + 1 == len(draw(told | {"costs": costs}, tmp_path))
    assert all(file.stat().st_size > 5000 for file in tmp_path.glob("*.png"))


def test_the_gallery_begins_with_pictures_that_are_asked_much(world):
    pictures = of_splits(world, ("test",))
    chosen = telling(pictures, 3)
    kinds = [len({row.task for row in picture.rows}) for picture in pictures]
    assert len({row.task for row in chosen[0].rows}) >= np.median(kinds)


def test_relevance_is_the_gradient_of_the_right_answer(world, finished):
    """Against a small step along one feature of one patch, seen from the pictures' side."""
    model, processor = load_run(finished / "pool-nested-0" / "run")
    picture = of_splits(world, ("test",))[0]
    heat = relevance(model, processor, picture, picture.rows[0], FINEST)
    assert heat.shape == (8, 8)
    assert (heat >= 0).all()
    assert heat.max() > 0
    silent = relevance(_deaf(model), processor, picture, picture.rows[0], FINEST)
    assert silent.max() == 0


def _deaf(model):
    """The same model with a connector that says nothing of the picture."""
    for parameter in model.connector.mlp.parameters():
        parameter.data.zero_()
    return model


def test_costs_need_a_trained_model(tmp_path, some_cells):
    with pytest.raises(MvlmError, match="holds no trained model yet"):
        paper.measure_costs(some_cells, tmp_path)


def test_one_models_costs_are_measured_by_part(finished, some_cells):
    told = paper.measure_costs([cell for cell in some_cells if cell.name == "nested"], finished)
    (model,) = told["models"]
    assert model["family"] == "pool"
    assert all(len(model[unit][part]) == len(SCALES) for unit in ("gflops", "ms") for part in model[unit])
    assert all(value > 0 for values in model["ms"].values() for value in values)
    assert model["gflops"]["decoder"] == sorted(model["gflops"]["decoder"])


@pytest.mark.parametrize("family", ["pool", "nested_pool", "query"])
@pytest.mark.parametrize("m", SCALES)
def test_the_gallery_shows_what_the_tokens_take(family, m):
    connector = build_connector(family_config(family))
    if family == "query":
        start_pyramid(connector)
    looks = gathering(connector, m)
    assert np.allclose(looks.sum(axis=1), 1)
    if family == "pool":
        values = torch.randn(1, 64, 5)
        assert torch.allclose(connector.tokens(values, m)[0], torch.from_numpy(looks) @ values[0], atol=1e-5)


def test_gradients_are_of_questions_that_are_answered_rightly(world, finished, monkeypatch):
    model, processor = load_run(finished / "pool-nested-0" / "run")
    pictures = of_splits(world, ("test",))
    told = [("a", row.id, float(row.task != "letter")) for picture in pictures for row in picture.rows]
    lines = [{"id": row, "score": score} for _, row, score in told]
    monkeypatch.setattr("benchmarks.paper.gallery.sweep_pictures", lambda *_: (lines, []))
    sweep = Sweep(finished, world, SCALES, ("test",))
    chosen = telling_questions(model, processor, pictures, sweep)
    kinds = [row.task for _, row in chosen]
    assert "letter" not in kinds
    assert len(set(kinds)) == len(kinds) == len({id(picture) for picture, _ in chosen}) > 1


def test_relevance_is_of_the_whole_answer(world, finished):
    """A number begins with a token that every number begins with: its digits are what hangs on the picture."""
    model, processor = load_run(finished / "pool-nested-0" / "run")
    picture, row = next((p, r) for p in of_splits(world, ("test", "val")) for r in p.rows if r.task == "number")
    digits = row.turns[0].answers[0]
    other = f"{digits[0]}{(int(digits[1]) + 1) % 10}"
    changed = replace(row, turns=(replace(row.turns[0], answers=(other,)),))
    heats = [relevance(model, processor, picture, one, FINEST) for one in (row, changed)]
    assert not np.allclose(*heats, rtol=1e-3, atol=0)
