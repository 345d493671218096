"""The paper's benchmark: its cells, its counts and its statistics, each against the slow obvious way."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForCausalLM

import benchmarks.paper.__main__ as paper
from benchmarks.paper.cells import ODD, PREFIXES, Cell, cells_of, specialist
from benchmarks.paper.claims import MARGIN, Claim, Found, claims, difference, over_specialists
from benchmarks.paper.compute import family_config, step_flops
from benchmarks.paper.cost import of_their_size
from benchmarks.paper.flops import clip_flops, connector_flops, decoder_flops, prefill_flops, resnet_flops
from benchmarks.paper.gallery import gathering, relevance, telling, telling_questions
from benchmarks.paper.memory import TowerMemory, remembering
from benchmarks.paper.oracle import needs, oracle_figures, seeds_table
from benchmarks.paper.plots import draw
from benchmarks.paper.results import read_found, results
from benchmarks.paper.samplers import sample_patches
from benchmarks.paper.stats import Asked, Estimate, estimate, t_interval
from benchmarks.paper.train import CELL, SCORES, cell_steps, of_splits, run_cell
from benchmarks.paper.world import (
    ANSWER_TOKENS,
    FINEST,
    KINDS,
    QUESTION_TOKENS,
    SCALES,
    SIZE_PX,
    Size,
    coarser,
    draw_world,
)
from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.label.sweep import Sweep
from mvlm_core.modeling.connectors import start_pyramid
from mvlm_core.modeling.model import build_connector
from mvlm_core.scenes.rows_folder import SceneCounts
from tests.support.tiny import tiny_model

ROOT = Path(__file__).parents[2]
TINY = Size(
    pictures=SceneCounts(train=12, val=14, test=8), patch_steps=1, base_steps=1, exchange_steps=1, cell_steps=2,
    pictures_a_step=2, questions=3, cell_questions=2,
    overrides=(
        ("vision", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
        ("text", {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "num_hidden_layers": 1}),
    ),
)  # fmt: skip
# Of the cells that the results look at, some of each kind.
SOME = {
    "pool": ("base", "nested", "untrained-spatial", *map(specialist, SCALES)), "query": ("base", "uniform"),
    "nested_pool": (),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return draw_world(tmp_path_factory.mktemp("world"), TINY)


@pytest.fixture(scope="module")
def some_cells() -> list[Cell]:
    return [cell for cell in paper.ordered(1, TINY) if cell.name in SOME[cell.family]]


@pytest.fixture(scope="module")
def finished(world, some_cells) -> Path:
    folder = world.parent / "cells"
    for cell in some_cells:
        run_cell(cell, world, folder, TINY)
    return folder


@pytest.fixture
def here() -> Iterator[ThreadPoolExecutor]:
    """In the place of processes of their own, which would import torch again."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def made_up(name: str, seed: int, scores: np.ndarray, *, family="pool", scales=SCALES) -> Asked:
    n = len(scores)
    cell = Cell(name, family, seed, 1, scales=scales)
    names = np.array([f"p{row // 2}" for row in range(n)])
    tasks = np.array([KINDS[row % len(KINDS)] for row in range(n)])
    return Asked(cell, {}, scores.astype(float), tasks, names, np.full(scores.shape, ""), np.full(n, ""))


# The count of FLOPs.


def counted(work) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("tower", ["resnet", "clip"])
def test_a_towers_flops_are_those_that_torch_counts(tower):
    config = tiny_model(tower=tower).config.vision_config
    config._attn_implementation = "eager"
    model, side = AutoModel.from_config(config).eval(), 96
    formula = {"resnet": resnet_flops, "clip": clip_flops}[tower]
    assert formula(config, side) == counted(lambda: model(torch.zeros(1, 3, side, side)))


@pytest.mark.parametrize("language", ["qwen3", "llama"])
@pytest.mark.parametrize("positions", [1, 7, 40])
def test_a_decoders_flops_are_those_that_torch_counts(language, positions):
    config = tiny_model(language=language).config.text_config
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    embeds = torch.zeros(1, positions, config.hidden_size)
    torch_says = counted(lambda: model(inputs_embeds=embeds, logits_to_keep=1))
    # Torch counts the angles of the rotation too, as a product of positions and frequencies.
    angles = 2 * positions * config.head_dim // 2
    assert torch_says - decoder_flops(config, positions) in (0, angles)


@pytest.mark.parametrize("family", ["pool", "nested_pool", "query"])
@pytest.mark.parametrize("m", SCALES)
def test_a_connectors_flops_are_those_that_torch_counts(family, m):
    config = family_config(family)
    connector = build_connector(config)
    features = torch.zeros(1, config.grid_side**2, config.vision_config.hidden_sizes[-1])
    torch_says = counted(lambda: connector.tokens(connector.values(features), m))
    assert connector_flops(config, m) == torch_says


def test_the_benchmarks_own_model_counts_the_same_as_its_parts():
    config = family_config("pool")
    flops = prefill_flops(config, SIZE_PX, 16, 12)
    assert flops.tower == resnet_flops(config.vision_config, SIZE_PX)
    assert flops.total == flops.tower + flops.connector + flops.decoder


def test_at_llavas_size_the_count_is_m3s_own():
    told = of_their_size()
    for ours, theirs in zip(told["tflops"], told["their_tflops"], strict=True):
        assert ours == pytest.approx(theirs, abs=0.075)  # theirs are rounded to a tenth


def test_short_specialists_cost_together_what_mqts_one_model_costs():
    size = Size()
    cells = {cell.name: cell for cell in cells_of(0, size) if cell.family == "query"}
    one = step_flops("query", cells["uniform"].show, size.cell_questions)
    each = [cells[specialist(m, short=True)] for m in SCALES]
    together = sum(cell.compute * step_flops("query", cell.show, size.cell_questions) for cell in each)
    assert together == pytest.approx(one)
    assert all(0 < cell_steps(cell, size) < cell_steps(cells["uniform"], size) for cell in each)


# The cells.


def test_every_cell_has_a_name_of_its_own_and_comes_behind_what_it_starts_from():
    cells = paper.ordered(3, Size())
    keys = [cell.key for cell in cells]
    assert len(set(keys)) == len(keys)
    assert all(keys.index(c.start_key) < n for n, c in enumerate(cells) if c.start_key)
    assert {cell.seed for cell in cells} == {0, 1, 2}


def test_the_papers_own_cells_of_the_first_seed_come_first_and_ablations_of_the_others_last():
    cells = paper.ordered(3, Size())
    theirs = [n for n, cell in enumerate(cells) if cell.seed == 0 and cell.family != "nested_pool" and cell.point < 3]
    assert theirs == list(range(len(theirs)))
    ablations = [n for n, cell in enumerate(cells) if cell.seed and cell.point == 2]
    assert ablations == list(range(len(cells) - len(ablations), len(cells)))


def test_odd_numbers_stand_between_even_ones_that_are_trained():
    even = [m for m in PREFIXES if m % 2 == 0]
    assert all(m - 1 in even and m + 1 in even for m in ODD)


def test_the_text_is_as_long_as_the_rows_say(world, finished):
    _, processor = load_run(finished / "pool-base-0" / "run")
    lengths, answers = [], []
    for picture in of_splits(world, ("train", "val", "test")):
        for row in picture.rows:
            question, answer = row.turns[0].content[-1], row.turns[0].answers[0]
            ids = processor.tokenizer.encode(f" {answer}", add_special_tokens=False)
            answers.append(len(ids) + 1)  # and what ends it
            asked = processor.tokenizer.encode(question, add_special_tokens=False)
            lengths.append(len(asked) + 1 + answers[-1])  # the assistant's mark
    assert np.mean(lengths) == pytest.approx(QUESTION_TOKENS, rel=0.06)
    assert np.mean(answers) == pytest.approx(ANSWER_TOKENS, rel=0.06)


def test_the_world_keeps_its_kinds_alone_and_tags_of_its_grid(world):
    tasks = {json.loads(line)["task"] for line in (world / "rows.jsonl").read_text().splitlines()}
    assert tasks <= set(KINDS)
    assert len(tasks) > 5
    assert np.load(world / "patch_tags.npz")["shape"].shape[1:] == (8, 8)


def test_a_larger_patch_is_tagged_with_what_covers_most_of_it():
    tags = np.random.default_rng(0).integers(0, 4, (3, 12, 12)).astype(np.uint8)
    found = coarser(tags, 8)
    for n, y, x in np.ndindex(3, 8, 8):
        # In units of a twenty-fourth of the side, an old patch is two wide and a new one three.
        inside = [tags[n, (3 * y + i) // 2, (3 * x + j) // 2] for i in range(3) for j in range(3)]
        words = [inside.count(word) for word in (1, 2, 3)]
        assert found[n, y, x] == (1 + words.index(max(words)) if any(words) else 0)


def test_a_cell_ends_whole_and_a_second_run_leaves_it_alone(world, some_cells, finished, here, capsys):
    for cell in some_cells:
        facts = json.loads((finished / cell.key / CELL).read_text())
        assert facts["key"] == cell.key
        assert facts["train_core_seconds"] >= 0
        assert len(np.load(finished / cell.key / SCORES)["scores"]) > 0
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*.json")}
    paper.train_missing(some_cells, world, finished, TINY, here, at_once=1)
    assert f"{len(some_cells)} of {len(some_cells)} cells are there" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in finished.rglob("*.json")}


def test_a_cell_that_was_cut_short_is_trained_again_and_ends_the_same(world, some_cells, finished, here, tmp_path):
    cell = next(cell for cell in some_cells if cell.name == specialist(4) and cell.family == "pool")
    (tmp_path / cell.start_key).symlink_to(finished / cell.start_key)
    (tmp_path / f".{cell.key}.1.partial").mkdir()  # what a killed process leaves
    paper.train_missing([cell], world, tmp_path, TINY, here, at_once=1)
    again, first = (np.load(folder / cell.key / SCORES) for folder in (tmp_path, finished))
    assert (again["predictions"] == first["predictions"]).all()
    losses = [json.loads((folder / cell.key / CELL).read_text())["losses"] for folder in (tmp_path, finished)]
    assert losses[0] == losses[1]


def test_what_starts_from_a_broken_cell_is_left_out_and_named(world, some_cells, finished, here, tmp_path):
    cells = {cell.key: cell for cell in some_cells}
    base = tmp_path / "pool-base-0"
    base.mkdir()
    (base / CELL).write_text("{}")  # whole by its name, and no run in it
    chosen = [cells["pool-nested-0"], replace(cells["query-uniform-0"], start="nowhere")]
    with pytest.raises(MvlmError, match=r"2 cells were not trained:\n  pool-nested-0: .* is not a run"):
        paper.train_missing(chosen, world, tmp_path, TINY, here, at_once=1)


def test_a_specialist_is_asked_at_its_own_scale_and_a_labelled_cell_of_its_fit_rows(finished):
    assert np.load(finished / "pool-specialist-4-0" / SCORES)["scales"].tolist() == [4]
    assert set(np.load(finished / "pool-nested-0" / SCORES)["split"]) == {"val", "test"}
    assert set(np.load(finished / "pool-base-0" / SCORES)["split"]) == {"test"}


# Sampling and memory.


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [("spatial", [12 * y + x for y in (2, 6, 10) for x in (2, 6, 10)]), ("sequential", list(range(9)))],
)
def test_patches_are_taken_out_of_the_grid(sampling, wanted):
    model = tiny_model()
    weights = {name: tensor.clone() for name, tensor in model.connector.state_dict().items()}
    sample_patches(model, sampling)
    values = torch.arange(144.0)[None, :, None]
    assert model.connector.tokens(values, 9)[0, :, 0].tolist() == wanted
    assert model.connector.tokens(values, 144)[0, :, 0].tolist() == list(range(144))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.connector.state_dict().items())
    with pytest.raises(MvlmError, match="cannot show a picture in 5 tokens"):
        model.connector.tokens(values, 5)


def test_averages_are_the_models_own_way():
    model = tiny_model()
    before = model.connector
    sample_patches(model, "average")
    assert model.connector is before


def test_a_remembered_tower_says_the_same_and_is_asked_once():
    model, memory = tiny_model().train(), TowerMemory()
    tower, pixels = model.vision_tower, torch.randn(2, 3, 96, 96)
    asked: list[int] = []
    tower.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    with remembering(model, memory):
        first = model.encode_images(pixels)
        again = model.encode_images(torch.cat([pixels[1:], torch.ones(1, 3, 96, 96)]))
    assert asked == [2, 1]
    assert model.vision_tower is tower
    assert torch.equal(first[1], again[0])
    assert torch.allclose(first, model.eval().encode_images(pixels))


def test_another_towers_memory_is_not_taken():
    memory, pixels = TowerMemory(), torch.randn(1, 3, 96, 96)
    told = []
    for seed in (0, 1):
        model = tiny_model(seed=seed)
        with remembering(model, memory):
            told.append(model.vision_tower(pixels).last_hidden_state)
    assert not torch.allclose(*told)


# Statistics.


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
    assert seeds_table([made_up("nested", 0, scores)]).runs.shape == (400, 1, 4)


# From cells to results.


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
    monkeypatch.setattr("paper_gallery.sweep_pictures", lambda *_: (lines, []))
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
