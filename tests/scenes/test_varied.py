"""The drawn benchmark of continuous sizes: true answers, every size, and the plain one is what it always was."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from mvlm_core.data.reading import read_rows
from mvlm_core.scenes.draw import COLOURS, SHAPES, SIZE_PX, SMALL
from mvlm_core.scenes.varied import (
    CODE_LENGTH,
    KINDS,
    SIDE_PX,
    STRIPES,
    VARIED,
    VARIED_TAG_WORDS,
    ask_varied,
    draw_varied,
)
from mvlm_core.train.config import read_config
from tests.support.scenes import drawn_scenes

# Of 60 pictures of the plain world as it was before the varied one was drawn: things, questions, answers and tags.
PLAIN = "a8620aee289de4d9601129d7fffc804ffc3aca3334eb689c7d14cf2b2bf3e877"


@pytest.fixture(scope="module")
def drawn():
    return drawn_scenes(draw_varied, ask_varied)


def test_the_plain_world_is_what_it_was():
    """Its pixels too, where this Pillow draws the same: what is hashed are its questions, and what its patches show."""
    told = hashlib.sha256()
    for i in range(60):
        drawn = SMALL.draw(np.random.default_rng([0, i]), i % 2 == 1)
        told.update(json.dumps([[q.kind, q.text, q.answer] for q in drawn.questions]).encode())
        for group, tags in drawn.tags.items():
            told.update(group.encode() + tags.tobytes())
    assert told.hexdigest() == PLAIN


def test_sizes_vary_continuously(drawn):
    sides = np.array([thing.side_px for scene, _ in drawn for thing in scene.shapes()])
    assert set(range(SIDE_PX[0], 24)) <= set(sides.tolist())
    assert sides.max() > 40
    # Small ones stand for most: half of what is drawn is in the lower third of a logarithmic scale, or nearly.
    assert np.median(sides) < 18


def test_every_kind_is_asked_and_answers_vary(drawn):
    given = {kind: Counter(q.answer for _, asked in drawn for q in asked if q.kind == kind) for kind in KINDS}
    assert "relation" not in KINDS
    for kind, answers in given.items():
        assert len(answers) >= 2, kind
        assert answers.most_common(1)[0][1] < 0.6 * answers.total(), kind


def test_answers_are_true_of_the_scene(drawn):
    for scene, asked in drawn:
        shapes = {thing.shape: thing for thing in scene.shapes()}
        assert len(shapes) == len(scene.shapes())
        sides = sorted(thing.side_px for thing in shapes.values())
        for question in asked:
            named = [shape for shape in SHAPES if shape in question.text.replace("?", " ").replace(",", " ").split()]
            if question.kind == "colour_of":
                assert question.answer == shapes[named[0]].colour
            if question.kind == "where":
                assert question.answer == ("top" if shapes[named[0]].centre[1] < SIZE_PX / 2 else "bottom")
            if question.kind == "count_shapes":
                assert question.answer == str(len(shapes))
            if question.kind in ("largest", "smallest"):
                side = sides[-1] if question.kind == "largest" else sides[0]
                assert [t.colour for t in shapes.values() if t.side_px == side] == [question.answer]


def test_codes_and_flags_are_drawn_as_they_are_answered(drawn):
    """Read off the pixels: a flag's stripes, from left to right; a code by its characters' tags, where each has one."""
    flags = 0
    for scene, _ in drawn:
        for thing in scene.things:
            if thing.kind == "code":
                assert len(thing.text) == CODE_LENGTH
                assert thing.text.isdigit()
            if thing.kind == "flag":
                flags += 1
                left, top, right, bottom = thing.box
                row = np.asarray(scene.image)[(top + bottom) // 2, left:right].tolist()
                seen = [tuple(pixel) for i, pixel in enumerate(row) if not i or pixel != row[i - 1]]
                assert seen == [COLOURS[colour] for colour in thing.text.split()]
                assert len(seen) == STRIPES
    assert flags > 30


def test_tags_name_what_is_new(drawn):
    for scene, _ in drawn:
        shown = {VARIED_TAG_WORDS["thing"][tag - 1] for tag in np.unique(scene.tags["thing"]) if tag}
        assert shown <= {thing.kind for thing in scene.things}
        for thing in scene.things:
            if thing.kind == "flag":
                assert "flag" in shown


def test_the_verb_and_its_recipe(tmp_path, mvlm):
    few = ("--train", 3, "--val", 2, "--test", 2, "--world", "varied")
    result = mvlm("data", "scenes", "--out", tmp_path / "rows", *few)
    assert result.exit_code == 0, (result.output, result.exc_info)
    assert {row.task for row in read_rows(tmp_path / "rows")} <= set(KINDS)
    facts = json.loads((tmp_path / "rows" / "rows.json").read_text())
    assert facts["tasks"]["code"] == {"sight": "picture"}
    weights = read_config(tmp_path / "train.yaml").stages[-1].task_weights
    assert set(weights) <= set(KINDS)
    assert weights["flag"] == 2


@pytest.mark.parametrize("other", [("--clips",), ("--size", "large")])
def test_worlds_that_exclude_each_other(tmp_path, mvlm, other):
    refused = mvlm("data", "scenes", "--world", "varied", *other, "--out", tmp_path / "rows")
    assert refused.exit_code == 2
    assert "--world varied is of pictures of one view" in refused.output
    assert not (tmp_path / "rows").exists()


def test_the_picture_is_as_large_as_the_plain_one():
    assert (VARIED.size_px, VARIED.grid_side) == (SMALL.size_px, SMALL.grid_side)
