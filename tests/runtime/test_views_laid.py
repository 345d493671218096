"""A picture at a scale in a prompt: what stands for it, and what is refused, without any model."""

from __future__ import annotations

import numpy as np
import pytest

from export.runtime import MvlmError
from export.runtime.answer import Clock
from export.runtime.pictured import _stitched_names
from export.runtime.routing.by_picture import only
from export.runtime.routing.router import Terms
from export.runtime.views import NEWLINE, OVERVIEW, ClosestAspect, Marks, Pinpoints, Stitching, ViewSpec
from export.runtime.views.cutting import View
from export.runtime.views.laid import Layout
from export.runtime.views.scale import Scale, is_word, tokens_said
from export.runtime.views.seen import Seen
from export.runtime.views.shown import Shown, Stitch

HALF = (0.5, 0.5, 0.5)
IMAGE, START, END = 7, 1, 2


def ids_of(text: str) -> list[int]:
    return [{"<": START, ">": END, "#": IMAGE}[letter] for letter in text]


SPAN = ViewSpec(
    20, 4, HALF, HALF, ClosestAspect(1, 6), overview_last=True, image_token="#", marks=Marks("span", "<", ">")
)
GRID = ViewSpec(20, 4, HALF, HALF, Pinpoints(((1, 2), (2, 1), (2, 2))), image_token="#", stitching=Stitching(1))


@pytest.mark.parametrize("spec", [SPAN, GRID])
@pytest.mark.parametrize("size", [(20, 20), (40, 90), (90, 30), (100, 100)])
@pytest.mark.parametrize("word", [1, 4, "4@2", "4@native", "native"])
def test_what_is_laid_is_what_is_shown(spec, size, word):
    layout = Layout(spec, ids_of, IMAGE)
    laid, shown = layout.at(size, word), Shown.of(size, Scale.parse(word), spec)
    assert list(laid.ids) == ids_of(shown.text)
    assert len(laid.places) == shown.num_placeholders
    assert all(laid.ids[place] == IMAGE for place in laid.places)
    newlines = 0 if shown.stitch is None else sum((row == NEWLINE).all() for row in shown.stitch.sources)
    assert laid.num_visual_tokens == shown.num_placeholders - newlines
    assert laid.views == len(shown.views)
    assert layout.at(size, word) is laid  # laid out once
    assert layout.least(word) <= len(laid)


def test_a_model_without_views_shows_placeholders_alone():
    layout = Layout(None, ids_of, IMAGE)
    assert layout.at((3, 900), 9).ids == (IMAGE,) * 9
    assert layout.clip(8, "4@2").ids == (IMAGE,) * 8
    assert layout.clip(3, "4@native").views == 3
    with pytest.raises(MvlmError, match="view of this model has no tokens of its own, and native asks for them"):
        layout.at((3, 9), "native")


def test_a_tokenizer_of_another_model():
    layout = Layout(SPAN, lambda text: ids_of(text)[:-2], IMAGE)
    with pytest.raises(MvlmError, match="the tokenizer makes 15 placeholders of 16: it is another model's"):
        layout.at((20, 20), 16)


def test_words_of_scales():
    assert [is_word(word) for word in ("36", "16@4", "native", "16@native", "", "x", "0", "16@", "auto")] == [
        True, True, True, True, False, False, False, False, False,
    ]  # fmt: skip
    assert [tokens_said(word) for word in (1, 36, "16@4")] == ["1 token", "36 tokens", "16@4"]


def test_names_of_stitched_tokens():
    names = ["a", "b"]
    alone = Stitch(np.array([[0], [NEWLINE], [1]]), np.ones((3, 1), np.float32))
    assert _stitched_names(names, alone) == ["a", "newline", "b"]
    mixed = Stitch(np.array([[0, 0], [NEWLINE, NEWLINE], [0, 1]]), np.array([[1, 0], [1, 0], [0.25, 0.75]], np.float32))
    assert _stitched_names(names, mixed) == ["a", "newline", (("a", 0.25), ("b", 0.75))]


def test_views_of_a_picture_are_encoded_once_and_told_apart():
    asked: list[list[View]] = []

    def encode(views, clock):
        asked.append(list(views))
        return np.stack([np.full((2, 3), view.row, np.float32) for view in views])

    tiles = [View(row=n) for n in (1, 2, 3)]
    seen = Seen(np.zeros((1, 2, 3), np.float32), (4, 5), encode, lambda: b"one")
    assert seen.missing([OVERVIEW, tiles[0], tiles[0]]) == [tiles[0]]
    assert seen.values([OVERVIEW, tiles[1], tiles[0], tiles[1]], Clock())[:, 0, 0].tolist() == [0, 2, 1, 2]
    assert seen.values([tiles[2], OVERVIEW, tiles[0]], Clock())[:, 0, 0].tolist() == [3, 0, 1]
    assert asked == [[tiles[1], tiles[0]], [tiles[2]]]
    other = Seen(np.zeros((1, 2, 3), np.float32), (5, 4), encode, lambda: b"two")
    assert seen.key_of(tiles[0]) != other.key_of(tiles[0])
    assert seen.key_of(OVERVIEW) != other.key_of(OVERVIEW)  # of another size, so of other tiles


def test_scales_that_leave_no_room_are_not_chosen():
    costs = np.array([1.0, 9.0, 3.0])
    terms, here = only(np.array([True, False, True]), costs, Terms(price=0.0), 1.0)
    assert terms.cap == 3.0
    assert (here <= terms.cap).tolist() == [True, False, True]
    assert only(np.array([True, True, True]), costs, Terms(cap=2.0), 1.0)[0].cap == 2.0
    assert only(np.array([True, False, False]), costs, Terms(price=0.0), 1.5)[0].cap == 1.5
