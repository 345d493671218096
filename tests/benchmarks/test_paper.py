"""The paper's benchmark: its cells, its world, its samplers and the tower's memory, each against the slow way."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import benchmarks.paper.__main__ as paper
from benchmarks.paper.cells import ODD, PREFIXES, specialist
from benchmarks.paper.memory import TowerMemory, remembering
from benchmarks.paper.samplers import sample_patches
from benchmarks.paper.train import CELL, SCORES, of_splits
from benchmarks.paper.world import (
    ANSWER_TOKENS,
    KINDS,
    QUESTION_TOKENS,
    Size,
    coarser,
)
from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.run_folder import load_run
from tests.support.paper_cells import TINY
from tests.support.tiny import tiny_model


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
