"""What the router sees: names, shares of one whole, and a match that finds the named thing."""

import numpy as np
import pytest

from export.runtime.errors import MvlmError
from export.runtime.features import (
    image_feature_names,
    image_features,
    pyramid_sides,
    question_feature_names,
    question_features,
)

RANDOM = np.random.default_rng(0)


def words(side: int = 12, width: int = 16) -> np.ndarray:
    return RANDOM.normal(size=(side * side, width)).astype(np.float32)


@pytest.mark.parametrize("side", [1, 5, 12, 16, 24, 27])
def test_names_and_values_are_as_many_for_every_grid(side):
    patches = words(side)
    assert image_features(patches).shape == (len(image_feature_names()),)
    assert question_features("what?", words(2), patches).shape == (len(question_feature_names()),)
    assert np.isfinite(image_features(patches)).all()


def test_energies_are_shares_of_one_whole():
    values = dict(zip(image_feature_names(), image_features(words()), strict=True))
    shares = [value for name, value in values.items() if name.startswith("energy")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert min(shares) >= 0


def test_a_flat_picture_loses_nothing_when_pooled():
    values = dict(zip(image_feature_names(), image_features(np.ones((144, 8), np.float32)), strict=True))
    assert values["energy_kept"] == pytest.approx(1, abs=1e-5)


def test_pyramid_halves_and_ends_in_one_cell():
    assert pyramid_sides(24) == (12, 6, 3, 1)
    assert pyramid_sides(12) == (6, 3, 1, 1)
    assert pyramid_sides(64)[-1] == 1


def test_the_match_sees_how_large_the_named_thing_is():
    """The word that stands in the picture is found, and pooling loses it sooner the smaller it is."""
    names = question_feature_names()
    word = np.eye(16, dtype=np.float32)[0]
    pooled = {}
    for side in (1, 6):
        patches = np.zeros((12, 12, 16), np.float32)
        patches[:side, :side] = word * 3
        values = question_features("star?", np.stack([np.eye(16, dtype=np.float32)[5], word]), patches.reshape(144, 16))
        named = dict(zip(names, values, strict=True))
        assert named["match0_peak"] == pytest.approx(3, abs=1e-3)
        assert named["match0_area"] == pytest.approx(side * side / 144)
        pooled[side] = named["match0_peak_pooled_2"]
    assert pooled[1] < pooled[6]


def test_the_question_is_hashed_alike_everywhere():
    names = question_feature_names()
    values = question_features("What colour is it?", words(1), words())
    assert [name for name, value in zip(names, values, strict=True) if name.startswith("hash") and value] == [
        "hash14", "hash23", "hash34", "hash52",
    ]  # fmt: skip


def test_what_has_no_features():
    with pytest.raises(MvlmError, match="no tokens"):
        question_features("", np.zeros((0, 16), np.float32), words())
    with pytest.raises(MvlmError, match="do not fill a square"):
        image_features(np.zeros((7, 16), np.float32))
