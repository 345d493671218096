"""Tiles' tokens put together to one grid: what transformers' own stitching gives, at every scale."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from export.runtime.errors import MvlmError
from export.runtime.views import NEWLINE, Canvas, Pinpoints, Scale, Shown, Stitching, ViewSpec, joined
from export.runtime.views.shown import stitched

SIDE_PX = 48
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (3, 3), (1, 1), (2, 4))
HALF = (0.5, 0.5, 0.5)
SIZES = [(1, 64), (64, 1), (1, 1), (60, 60), (90, 200), (640, 10), (333, 217)]
SIZES += [(int(h), int(w)) for h, w in np.random.default_rng(3).integers(2, 900, (10, 2))]


def theirs(shown: Shown, size, side: int, most: int | None, tokens, newline):
    vision = SimpleNamespace(image_size=SIDE_PX, patch_size=SIDE_PX // side)
    grids = [[rows * SIDE_PX, cols * SIDE_PX] for rows, cols in GRIDS]
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=grids))
    if most is None:
        pack, told = LlavaNextModel.pack_image_features, {"vision_feature_select_strategy": "full"}
    else:
        pack, told = LlavaOnevisionModel.pack_image_features, {"vision_aspect_ratio": f"anyres_max_{most}"}
    return pack(model, [tokens], [list(size)], image_newline=newline, **told)[0][0]


@pytest.mark.parametrize("most", [None, 1, 4, 9])
@pytest.mark.parametrize("side", [2, 3, 6])
@pytest.mark.parametrize("size", SIZES)
def test_as_transformers_packs(size, side, most):
    spec = ViewSpec(SIDE_PX, side, HALF, HALF, Pinpoints(GRIDS), stitching=Stitching(most))
    shown = Shown.of(size, Scale(None, None), spec)
    tokens, newline = torch.randn(len(shown.views), side * side, 5), torch.randn(5)
    rows = torch.cat([tokens.flatten(0, 1), newline[None]])
    got = (rows[shown.stitch.sources] * torch.from_numpy(shown.stitch.weights)[..., None]).sum(dim=1)
    wanted = theirs(shown, size, side, most, tokens, newline)
    assert len(wanted) == shown.num_placeholders == shown.text.count("<image>")
    assert torch.allclose(got, wanted, atol=1e-5)


def test_two_by_two_tiles_of_one_token_make_seven():
    """As in M3's code; its paper says 5, and does not count the newlines."""
    assert len(stitched(Canvas(2, 2), 1, (96, 96), Stitching()).sources) == 1 + 2 * (2 + 1)


def test_an_overview_alone_ends_in_a_newline():
    assert stitched(None, 4, (9, 9), Stitching()).sources[:, 0].tolist() == [0, 1, 2, 3, NEWLINE]


def test_a_grid_that_would_vanish_keeps_a_row():
    assert len(stitched(Canvas(1, 1), 1, (900, 455), Stitching(1)).sources) > 1


def test_tokens_that_are_no_square_are_refused():
    with pytest.raises(MvlmError, match="tiles of 5 tokens cannot be put together to a grid: name a square, as in 4"):
        stitched(Canvas(1, 2), 5, (9, 9), Stitching())


def test_pictures_one_behind_another():
    spec = ViewSpec(SIDE_PX, 6, HALF, HALF, Pinpoints(GRIDS), stitching=Stitching(4))
    shown = [Shown.of(size, Scale.parse(scale), spec) for size, scale in [((96, 96), 4), ((300, 300), "native")]]
    both = joined(shown)
    assert both is not None
    tokens = [np.random.default_rng(0).random((one.tokens * len(one.views), 3)) for one in shown]
    newline = np.ones((1, 3))

    def put(stitch, rows):
        return (np.concatenate([rows, newline])[stitch.sources] * stitch.weights[..., None]).sum(axis=1)

    apart = np.concatenate([put(one.stitch, rows) for one, rows in zip(shown, tokens, strict=True)])
    assert np.allclose(put(both, np.concatenate(tokens)), apart)
    assert joined([Shown.of((9, 9), Scale(4), ViewSpec(SIDE_PX, 2, HALF, HALF))]) is None
