"""The drawn benchmark: questions whose answers can be read off the scene, splits that do not touch."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from export.runtime.artefact import sha256_file
from mvlm_core.data.reading import read_rows
from mvlm_core.scenes import large, moving, varied
from mvlm_core.scenes.draw import GRID_SIDE, KINDS, SHAPES, TAG_WORDS, ask, draw_scene
from mvlm_core.scenes.question_templates import WORDINGS
from tests.support.scenes import drawn_scenes


@pytest.fixture(scope="module")
def drawn():
    return drawn_scenes(draw_scene, ask)


def test_the_same_seed_draws_the_same_scene():
    one, two = (draw_scene(np.random.default_rng(7)) for _ in range(2))
    assert one.image.tobytes() == two.image.tobytes()
    assert ask(one, np.random.default_rng(1), held_out=True) == ask(two, np.random.default_rng(1), held_out=True)


def test_every_kind_is_asked_and_answers_vary(drawn):
    answers = {kind: Counter(q.answer for _, asked in drawn for q in asked if q.kind == kind) for kind in KINDS}
    assert len(KINDS) >= 10
    for kind, given in answers.items():
        assert len(given) >= 2, kind
        assert given.most_common(1)[0][1] < 0.8 * given.total(), kind


def test_answers_are_true_of_the_scene(drawn):
    for scene, asked in drawn:
        shapes = {thing.shape: thing for thing in scene.shapes()}
        assert len(shapes) == len(scene.shapes())  # each shape stands once, so "the star" names one thing
        for question in asked:
            named = [shape for shape in SHAPES if shape in question.text.replace("?", " ").replace(",", " ").split()]
            if question.kind == "colour_of":
                assert question.answer == shapes[named[0]].colour
            if question.kind == "count_large":
                assert question.answer == str(sum(t.size in ("large", "huge") for t in shapes.values()))
            if question.kind == "largest":
                assert question.answer == max(shapes.values(), key=lambda t: t.side_px).colour
            if question.kind == "where":
                assert question.answer == ("top" if shapes[named[0]].centre[1] < 48 else "bottom")
            if question.kind == "relation":
                one, other = (shapes[name].centre[0] for name in sorted(named, key=question.text.index))
                if question.text.startswith("on which side of"):
                    one, other = other, one
                assert question.answer == ("left" if one < other else "right")


def test_things_do_not_overlap_and_tags_say_what_is_there(drawn):
    for scene, _ in drawn:
        for group, tags in scene.tags.items():
            assert tags.shape == (GRID_SIDE, GRID_SIDE)
            assert tags.max() <= len(TAG_WORDS[group])
        for thing in scene.shapes():
            shown = scene.tags["shape"] == TAG_WORDS["shape"].index(thing.shape) + 1
            assert shown.any()
            rows, columns = np.nonzero(shown)
            assert abs(columns.mean() * 8 + 4 - thing.centre[0]) < 12
            assert abs(rows.mean() * 8 + 4 - thing.centre[1]) < 12


def test_held_out_wordings_use_known_words():
    seen = {word for kind in WORDINGS.values() for text in kind.seen for word in _words(text)}
    held_out = {text for kind in WORDINGS.values() for text in kind.held_out}
    assert set(WORDINGS) == set(KINDS) | set(varied.KINDS) | set(large.KINDS) | set(moving.KINDS)
    assert {word for text in held_out for word in _words(text)} <= seen
    assert not held_out & {text for kind in WORDINGS.values() for text in kind.seen}


def _words(text: str) -> list[str]:
    return text.replace("?", "").replace(",", "").replace(".", "").split()


def test_the_folder(scenes):
    facts = json.loads((scenes / "rows.json").read_text())
    rows = read_rows(scenes)
    assert facts["files"]["rows.jsonl"] == sha256_file(scenes / "rows.jsonl")
    assert sum(facts["rows"].values()) == len(rows)
    assert Counter(row.split for row in rows).keys() == {"train", "val", "test"}
    with Image.open(scenes / "contact_sheet.png") as sheet:
        assert sheet.width > sheet.height > 300
    questions = {split: {row.question for row in rows if row.split == split} for split in ("train", "test")}
    held_out = {"which ground does the picture show?", "is there a frame in the picture?"}
    assert held_out & questions["test"]
    assert not held_out & questions["train"]


def test_the_verb(tmp_path, mvlm):
    few = ("--train", 3, "--val", 1, "--test", 1)
    result = mvlm("data", "scenes", "--out", tmp_path / "rows", *few)
    assert result.exit_code == 0, result.output
    assert "next: mvlm data check" in result.output
    first = (tmp_path / "rows" / "rows.jsonl").read_bytes()
    again = mvlm("data", "scenes", "--out", tmp_path / "rows", *few)
    assert again.exit_code == 2
    assert "train.yaml is there already" in again.output
    (tmp_path / "train.yaml").unlink()
    assert "is not empty" in mvlm("data", "scenes", "--out", tmp_path / "rows", *few).output
    assert mvlm("data", "scenes", "--out", tmp_path / "rows", *few, "--overwrite").exit_code == 0
    assert (tmp_path / "rows" / "rows.jsonl").read_bytes() == first
    assert "at least one picture" in mvlm("data", "scenes", "--out", tmp_path / "x", "--train", 0).output
    assert not (tmp_path / "x").exists()
