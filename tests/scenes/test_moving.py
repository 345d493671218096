"""Drawn clips: answers that can be read off their frames, and a model that is trained on them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mvlm_core.data.reading import read_rows
from mvlm_core.scenes.draw import COLOURS
from mvlm_core.scenes.moving import FRAMES, GRID_SIDE, KINDS, SIZE_PX, TAG_WORDS, WAYS, compose, draw_clip
from mvlm_core.train.config import read_config
from tests.support.tiny import SMALL_MODEL


def middle_of(frame, colour: str) -> np.ndarray:
    """Where a frame shows a colour: the mean (row, column)."""
    here = (np.abs(np.asarray(frame).astype(int) - COLOURS[colour]).sum(axis=-1) < 10).nonzero()
    return np.array([axis.mean() for axis in here])


@pytest.mark.parametrize("seed", range(20))
def test_answers_can_be_read_off_the_frames(seed):
    scene, drawn = compose(np.random.default_rng(seed)), draw_clip(np.random.default_rng(seed), False)
    told = {asked.kind: asked.answer for asked in drawn.questions}
    assert set(told) == set(KINDS)
    assert len(drawn.frames) == FRAMES
    assert drawn.image.tobytes() == drawn.frames[FRAMES // 2].tobytes()
    went = middle_of(drawn.frames[-1], scene.colour) - middle_of(drawn.frames[0], scene.colour)
    assert tuple(np.sign(went.round()).astype(int)[::-1]) == tuple(np.sign(WAYS[told["moves"]]))
    lamp = [np.asarray(frame)[6, 32].astype(int) for frame in drawn.frames]
    assert sum(bool(pixel[0] > 200) for pixel in lamp) == int(told["flashes"])
    first = [
        n
        for n, frame in enumerate(drawn.frames)
        if np.array_equal(np.asarray(frame)[56, 8], COLOURS[told["first_flag"]])
    ]
    second = [
        n for n, frame in enumerate(drawn.frames) if np.array_equal(np.asarray(frame)[56, 56], COLOURS[scene.flags[1]])
    ]
    assert min(first) < min(second)


def test_tags_say_what_the_middle_frame_shows():
    for seed in range(20):
        scene, drawn = compose(np.random.default_rng(seed)), draw_clip(np.random.default_rng(seed), False)
        for group, tags in drawn.tags.items():
            assert tags.shape == (GRID_SIDE, GRID_SIDE)
            assert tags.max() <= len(TAG_WORDS[group])
        rows, columns = np.nonzero(drawn.tags["shape"] == TAG_WORDS["shape"].index(scene.shape) + 1)
        assert abs(rows.mean() * 8 + 4 - SIZE_PX / 2) < 9
        assert abs(columns.mean() * 8 + 4 - SIZE_PX / 2) < 9


def test_answers_vary():
    given = {kind: Counter() for kind in KINDS}
    for seed in range(100):
        for asked in draw_clip(np.random.default_rng(seed), True).questions:
            given[asked.kind][asked.answer] += 1
    assert all(of.most_common(1)[0][1] < 60 for of in given.values())


def test_the_folder_and_a_model_of_it(tmp_path, mvlm):
    few = ("--train", 4, "--val", 2, "--test", 2)
    result = mvlm("data", "scenes", "--clips", "--out", tmp_path / "rows", *few)
    assert result.exit_code == 0, (result.output, result.exc_info)
    rows = read_rows(tmp_path / "rows")
    assert {row.task for row in rows} == set(KINDS)
    assert {row.image.frames for row in rows} == {FRAMES}
    assert "4@8" in read_config(tmp_path / "train.yaml").scales
    steps = ("stages.0.steps=1", "stages.1.steps=1", "stages.1.questions=2")
    result = mvlm("train", tmp_path / "train.yaml", *SMALL_MODEL, *steps, "--out", tmp_path / "run")
    assert result.exit_code == 0, (result.output, result.exc_info)
    both = mvlm("data", "scenes", "--clips", "--size", "large", "--out", tmp_path / "x" / "rows", *few)
    assert both.exit_code == 2
    assert "--clips and --size large exclude each other" in both.output
