"""Drawn sheets of several sizes: answers that can be read off them, and a model with tiles that is trained on them."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from export.runtime.views.cutting import ClosestAspect
from mvlm_core.data.reading import read_rows
from mvlm_core.scenes.large import COLOURS, GRID_SIDE, KINDS, LARGE, SHEETS, SIZE_PX, TAG_WORDS, compose, draw_sheet
from mvlm_core.train.config import read_config
from tests.support.tiny import SMALL_MODEL


@pytest.fixture(scope="module")
def sheets():
    return [compose(np.random.default_rng(n)) for n in range(200)]


def test_the_same_seed_draws_the_same_sheet():
    one, two = (draw_sheet(np.random.default_rng(3), True) for _ in range(2))
    assert one.image.tobytes() == two.image.tobytes()
    assert one.questions == two.questions


def test_every_size_has_a_whole_number_of_tiles(sheets):
    assert {sheet.size for sheet in sheets} == set(SHEETS)
    assert sum(SHEETS.values()) == pytest.approx(1)
    rule = ClosestAspect(1, 16)
    for height, width in SHEETS:
        canvas = rule.within((height, width), SIZE_PX, 16)
        views = (height // SIZE_PX) * (width // SIZE_PX)
        assert (canvas.tiles if canvas else 1) == views
        assert views <= 16


def test_letters_are_as_large_as_chance_will_have_it(sheets):
    heights = [sheet.height_in_overview(letter) for sheet in sheets for letter in sheet.letters]
    assert min(heights) < 4
    assert max(heights) > 24
    shares = np.histogram(heights, [0, 5, 10, 64])[0] / len(heights)
    assert shares.min() > 0.1


def test_nothing_overlaps_and_all_is_on_the_sheet(sheets):
    for sheet in sheets:
        boxes = [letter.box for letter in sheet.letters] + sheet.dots
        for n, (left, top, right, bottom) in enumerate(boxes):
            assert 0 <= left < right <= sheet.size[1]
            assert 0 <= top < bottom <= sheet.size[0]
            assert all(left >= x1 or x0 >= right or top >= y1 or y0 >= bottom for x0, y0, x1, y1 in boxes[:n])
        assert len({letter.text for letter in sheet.letters}) == len(sheet.letters)
        assert len({letter.colour for letter in sheet.letters}) == len(sheet.letters)


def test_answers_are_true_of_the_sheet_and_vary():
    answers: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for n in range(150):
        sheet = compose(np.random.default_rng(n))
        drawn = draw_sheet(np.random.default_rng(n), False)
        ink = {letter.text: letter.colour for letter in sheet.letters}
        for asked in drawn.questions:
            answers[asked.kind][asked.answer] += 1
            colour = next((name for name in COLOURS if name in asked.text.split()), None)
            if asked.kind == "ink_of":
                assert (
                    asked.answer
                    == ink[asked.text.strip("?.").split()[-1] if "have" not in asked.text else asked.text.split()[-2]]
                )
            if asked.kind == "letter_of":
                assert ink[asked.answer] == colour or f"{ink[asked.answer]}?" in asked.text
            if asked.kind == "count_letters":
                assert asked.answer == str(len(sheet.letters))
            if asked.kind == "dots":
                assert asked.answer == str(len(sheet.dots))
    for kind, given in answers.items():
        assert len(given) >= 2, kind
        assert given.most_common(1)[0][1] < 0.8 * given.total(), kind


def test_tags_say_what_the_overview_shows(sheets):
    for n in range(60):
        sheet, drawn = compose(np.random.default_rng(n)), draw_sheet(np.random.default_rng(n), False)
        for group, tags in drawn.tags.items():
            assert tags.shape == (GRID_SIDE, GRID_SIDE)
            assert tags.max() <= len(TAG_WORDS[group])
        for letter in sheet.letters:
            of_letter = drawn.tags["character"] == TAG_WORDS["character"].index(letter.text) + 1
            if sheet.height_in_overview(letter) < 7:
                assert not of_letter.any()
        told = {COLOURS_BY_TAG[tag] for tag in np.unique(drawn.tags["colour"]) if tag}
        assert told <= {letter.colour for letter in sheet.letters}


COLOURS_BY_TAG = {n + 1: name for n, name in enumerate(COLOURS)}


def test_the_folder_and_a_model_of_it(tmp_path, mvlm):
    result = mvlm(
        "data", "scenes", "--size", "large", "--out", tmp_path / "rows", "--train", 8, "--val", 2, "--test", 2
    )
    assert result.exit_code == 0, (result.output, result.exc_info)
    rows = read_rows(tmp_path / "rows")
    assert {row.task for row in rows} == set(KINDS)
    facts = json.loads((tmp_path / "rows" / "rows.json").read_text())
    assert facts["size_px"] == LARGE.size_px
    assert facts["tasks"]["paper"] == {"sight": "one-token"}
    with Image.open(tmp_path / "rows" / "contact_sheet.png") as sheet:
        assert sheet.width > sheet.height
    assert read_config(tmp_path / "train.yaml").model.image.tiles == 16
    steps = ("stages.0.steps=1", "stages.1.steps=1", "stages.1.questions=2")
    result = mvlm("train", tmp_path / "train.yaml", *SMALL_MODEL, *steps, "--out", tmp_path / "run")
    assert result.exit_code == 0, (result.output, result.exc_info)
    few = mvlm("data", "scenes", "--size", "large", "--out", tmp_path / "x" / "rows", "--val", 0)
    assert few.exit_code == 2
    assert "each split needs at least one picture" in few.output
