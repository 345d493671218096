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


def slow_match(scores: np.ndarray, patches: np.ndarray) -> list[float]:
    """One word's match, patch by patch and cell by cell, in float64."""
    side, width = round(len(patches) ** 0.5), patches.shape[1]
    grid, picture = scores.reshape(side, side), patches.reshape(side, side, width)
    ordered = sorted(scores, reverse=True)
    row, column = (int(i) for i in np.unravel_index(grid.argmax(), grid.shape))
    half = (grid.max() + grid.mean()) / 2
    high = [(i, j) for i in range(side) for j in range(side) if grid[i, j] >= half]
    rivals = sum(grid[i, j] == grid[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].max() for i, j in high)
    rows, columns = np.array(high).T
    pooled, lost, here = [], [], picture[row, column]
    for cells in pyramid_sides(side):
        step = side // cells
        cut = [slice(i, i + step) for i in range(0, side, step)]
        pooled.append(max(grid[above, beside].mean() for above in cut for beside in cut))
        i, j = row // step * step, column // step * step
        coarser = picture[i : i + step, j : j + step].mean(axis=(0, 1))
        lost.append(((here - coarser) ** 2).sum() / (picture[row, column] ** 2).sum())
        here = coarser
    angle = grid.max() / np.linalg.norm(picture[row, column])
    region = [len(high) / side**2, np.hypot(rows.std(), columns.std()) / side, rivals]
    where = [rows.mean() / side, columns.mean() / side]
    return [
        ordered[0],
        grid.mean(),
        np.mean(ordered[:4]),
        np.mean(ordered[:10]),
        angle,
        *region,
        *where,
        *pooled,
        *lost,
    ]


@pytest.mark.parametrize("side", [5, 12, 24])
def test_the_match_is_what_a_slow_search_finds(side):
    patches, tokens = words(side, 32), words(3, 32)  # (P, D), (9, D)
    exact = patches.astype(np.float64)
    maps = [exact @ (token / np.linalg.norm(token)) for token in tokens.astype(np.float64)]
    first, second = sorted(maps, key=lambda scores: scores.mean() - scores.max())[:2]
    apart = np.subtract(*(divmod(int(scores.argmax()), side) for scores in (first, second)))
    wanted = [9, *slow_match(first, exact), *slow_match(second, exact)]
    wanted += [np.hypot(*apart) / side, (first + second).max() / 2]
    found = question_features("", tokens, patches)
    np.testing.assert_allclose(found[: len(wanted)], wanted, rtol=2e-4, atol=2e-5)
    assert len(wanted) == question_feature_names().index("hash0")


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
