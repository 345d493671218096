"""How pictures are cut, normalised and marked: transformers' own image processors say the same, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from transformers import (
    GotOcr2ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    SmolVLMImageProcessorPil,
)
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from export.runtime.errors import MvlmError
from export.runtime.views import (
    OVERVIEW,
    ClosestAspect,
    LongestEdge,
    Marks,
    Pinpoints,
    Scale,
    Shown,
    Stitching,
    ViewSpec,
    Whole,
    view_pixels,
)

RANDOM = np.random.default_rng(0)
SIZES = [(1, 1), (1, 64), (64, 1), (60, 60), (90, 200), (240, 100), (7, 3), (640, 10), (40, 3000)]
SIZES += [(int(h), int(w)) for h, w in RANDOM.integers(1, 700, (12, 2))]
HALF = (0.5, 0.5, 0.5)
NATIVE = Scale(None, None)
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (3, 3), (1, 1))


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(sum(size)).integers(0, 255, (*size, 3), np.uint8))


def check(theirs, spec: ViewSpec, size: tuple[int, int]) -> Shown:
    shown = Shown.of(size, NATIVE, spec)
    pixels = view_pixels(noise(size), shown.views, spec)
    assert pixels.shape == theirs.shape
    assert (pixels == theirs).all()
    overview = shown.views.index(OVERVIEW)
    assert (view_pixels(noise(size), [OVERVIEW], spec)[0] == theirs[overview]).all()
    return shown


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("side", "longest", "splitting"), [(64, 256, True), (48, 149, True), (32, 64, False)])
def test_smolvlm_cuts_as_its_processor(size, side, longest, splitting):
    processor = SmolVLMImageProcessorPil(
        size={"longest_edge": longest}, max_image_size={"longest_edge": side}, do_image_splitting=splitting
    )
    theirs = processor([noise(size)], return_tensors="np", return_row_col_info=True)
    marks = Marks("grid", "<fake>", "", "<whole>")
    spec = ViewSpec(
        side, 2, HALF, HALF, LongestEdge(longest, splitting), "lanczos", overview_last=True, marks=marks
    )  # fmt: skip
    shown = check(theirs["pixel_values"][0], spec, size)
    rows, cols = theirs["rows"][0][0], theirs["cols"][0][0]
    assert shown.text == get_image_prompt_string(rows, cols, 4, "<fake>", "<image>", "<whole>")
    assert shown.num_placeholders == shown.text.count("<image>")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("least", "most"), [(1, 6), (2, 12), (3, 9), (1, 1)])
def test_internvl_cuts_as_its_processor(size, least, most):
    processor = GotOcr2ImageProcessorPil(
        size={"height": 40, "width": 40}, crop_to_patches=True, min_patches=least, max_patches=most
    )
    rule = ClosestAspect(least, most) if most > 1 else Whole()
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    spec = ViewSpec(40, 2, mean, std, rule, overview_last=True, marks=Marks("span", "<a>", "<b>"))
    shown = check(processor([noise(size)], return_tensors="np")["pixel_values"], spec, size)
    assert shown.text == f"<a>{'<image>' * 4 * len(shown.views)}<b>"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [LlavaNextImageProcessorPil, LlavaOnevisionImageProcessorPil])
def test_llava_next_cuts_as_its_processor(size, kind):
    square = {"height": 48, "width": 48}
    processor = kind(
        size=square, crop_size=square, image_grid_pinpoints=[[rows * 48, cols * 48] for rows, cols in GRIDS]
    )
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    spec = ViewSpec(48, 6, mean, std, Pinpoints(GRIDS), stitching=Stitching())
    check(processor([noise(size)], return_tensors="np")["pixel_values"][0], spec, size)


RULES = {
    "smolvlm": LongestEdge(256), "internvl": ClosestAspect(1, 12), "llava": Pinpoints(GRIDS),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiles", [1, 4, 16])
def test_tiles_within_a_number_never_enlarge_a_picture(rule, size, tiles):
    spec = ViewSpec(48, 2, HALF, HALF, rule)
    canvas = spec.canvas(size, Scale(4, tiles))
    if max(size) < 48 or size[0] * size[1] < 48 * 48:
        assert canvas is None
    if canvas:
        assert 1 < canvas.tiles <= tiles or isinstance(rule, Pinpoints)
        if not isinstance(rule, Pinpoints):  # which leaves black around the picture
            assert canvas.tiles * 48 * 48 <= size[0] * size[1]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_large_picture_has_the_tiles_asked_for(rule):
    spec = ViewSpec(48, 2, HALF, HALF, rule)
    assert [len(spec.views((48 * 4, 48 * 4), Scale(4, tiles))) for tiles in (1, 4)] == [1, 5]
    wide = spec.canvas((48, 48 * 3), Scale(4, 4))
    assert wide is not None
    assert (wide.rows, wide.cols) == (1, 3)


def test_a_view_is_the_same_at_whatever_scale():
    spec = ViewSpec(48, 4, HALF, HALF, ClosestAspect(1, 12))
    coarse, fine = (spec.views((400, 400), Scale(tokens, 4)) for tokens in (1, 16))
    assert coarse == fine
    assert len({*coarse, *spec.views((400, 400), Scale(1, 9))}) == 1 + 4 + 9


def test_tiles_of_a_model_that_has_none_are_refused():
    spec = ViewSpec(48, 4, HALF, HALF)
    assert len(spec.views((400, 400), NATIVE)) == 1
    with pytest.raises(MvlmError, match="sees a picture as a whole, and 4@4 asks for tiles"):
        spec.views((400, 400), Scale(4, 4))


@pytest.mark.parametrize("rule", [*RULES.values(), Whole()])
@pytest.mark.parametrize("stitching", [None, Stitching(), Stitching(9)])
def test_the_description_is_read_as_it_was_written(rule, stitching):
    spec = ViewSpec(48, 6, HALF, HALF, rule, "lanczos", 0.5, True, "<p>", Marks("span", "a", "b"), stitching)
    assert ViewSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("key", "value"),
    [("rule", {"kind": "round"}), ("rule", None), ("mean", [1]), ("marks", {"x": 1}), ("size_px", "a")],
)
def test_what_is_no_description_is_refused(key, value):
    told = ViewSpec(48, 6, HALF, HALF).to_json() | {key: value}
    with pytest.raises(MvlmError, match="is not in order"):
        ViewSpec.from_json(told)


def test_an_unknown_filter_is_refused():
    with pytest.raises(MvlmError, match="resized by 'sinc', and there are only"):
        ViewSpec(48, 6, HALF, HALF, resample="sinc")
